"""Compiled forwards with other targets; in a process of its own, as the shape checks of other tests do not compile."""

import subprocess
import sys

STEPS = """
import torch
from dataclasses import replace
from pantomim.engine.runtime import autocast, compile_whole, generator
from pantomim.masking.grid import GridMasker
from pantomim.core.batch import Batch
from pantomim.methods.beit import BEiTConfig
from pantomim.methods.cae import CAEConfig
from pantomim.methods.mae import MAEConfig
from pantomim.nn.decoder import DecoderConfig, LatentDecoderConfig
from pantomim.nn.regressor import RegressorConfig
from pantomim.nn.vit import EncoderConfig
from pantomim.targets.distance import Distance
from pantomim.targets.features import FeatureTargetConfig
from pantomim.targets.hog import HOGTargetConfig
from pantomim.targets.pixels import PixelTargetConfig
from pantomim.targets.tokens import TokenTargetConfig
from pantomim.teachers.choice import TeacherConfig

torch.set_num_threads(1)
torch._dynamo.config.error_on_recompile = True
cpu = torch.device("cpu")
encoder = EncoderConfig(image_size=(16, 16), patch_size=4, width=16, depth=2, heads=2)
ema = FeatureTargetConfig(teacher=TeacherConfig("ema", blocks=2, momentum=0.5))
cosine = FeatureTargetConfig(teacher=TeacherConfig("random", depth=0), normalise="none", distance=Distance("cosine"))
mae = MAEConfig(encoder=encoder, decoder=DecoderConfig(width=16, depth=1, heads=2))
beit = BEiTConfig(encoder=encoder, masker=GridMasker())
cae = CAEConfig(encoder=encoder, masker=GridMasker(), regressor=RegressorConfig(depth=1),
                decoder=LatentDecoderConfig(depth=1))
l1 = PixelTargetConfig(normalise="none", distance=Distance("l1"))
tokens = TokenTargetConfig(tokenizer="random-projection", vocabulary=8)
for config, target in ((beit, ema), (mae, HOGTargetConfig()), (mae, tokens), (cae, cosine), (beit, l1)):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    method = replace(config, target=target).build().train()
    compile_whole(method, backend="eager")
    for step in range(3):
        batch = Batch(torch.rand(4, 3, 16, 16), torch.arange(4), None, total=4)
        draws = method.draw(batch, step, generator(0, step, cpu))
        losses = []
        for forward in (method, method.forward):
            with autocast(cpu, torch.bfloat16):
                losses.append(forward(batch, draws)["loss"])
        assert torch.equal(*losses), losses
        assert losses[0].dtype == torch.float32
        losses[0].backward()
        method.update_ema(step)
    counts = torch._dynamo.utils.counters
    assert counts["stats"]["unique_graphs"] == 1, (target, counts)
    assert not counts["graph_break"], (target, counts)
print("one graph")
"""


def test_every_target_in_one_graph() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "one graph", done.stderr
