"""CAE's compiled forward; in a process of its own, because the shape checks of the other tests do not compile."""

import subprocess
import sys

STEPS = """
import itertools, torch
from dataclasses import replace
from pantomim.engine.runtime import autocast, compile_whole, generator
from pantomim.core.batch import Batch
from pantomim.methods.cae import CAEConfig, cae_encoder
from pantomim.nn.decoder import LatentDecoderConfig
from pantomim.nn.regressor import RegressorConfig
from pantomim.targets.pixels import PixelTargetConfig

torch.set_num_threads(1)
torch._dynamo.config.error_on_recompile = True
cpu = torch.device("cpu")
encoder = replace(cae_encoder("base", 0.5), image_size=(16, 16), patch_size=4, width=16, depth=2, heads=2)
regressor, decoder = RegressorConfig(depth=1), LatentDecoderConfig(depth=1)
config = CAEConfig(encoder=encoder, regressor=regressor, decoder=decoder, target=PixelTargetConfig())
for changes in ({}, {"align_drop_path": False}, {"align_momentum": 0.9}):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    method = replace(config, **changes).build().train()
    compile_whole(method, backend="eager")
    for step, start in itertools.product(range(3), (0, 4)):
        batch = Batch(torch.rand(4, 3, 16, 16), torch.arange(4), None, start=start, total=8)
        draws = method.draw(batch, step, generator(0, step, cpu))
        losses = []
        for forward in (method, method.forward):
            torch.manual_seed(step)  # for stochastic depth
            with autocast(cpu, torch.bfloat16):
                losses.append(forward(batch, draws)["loss"])
        assert torch.equal(*losses), losses
        losses[0].backward()
        method.update_ema(step)
        assert all(module.training for module in method.encoder.modules())
    counts = torch._dynamo.utils.counters
    assert counts["stats"]["unique_graphs"] == 1, (changes, counts)
    assert not counts["graph_break"], (changes, counts)
print("one graph")
"""


def test_one_graph_whatever_the_alignment() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "one graph", done.stderr
