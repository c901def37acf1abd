"""BEiT's compiled forward; in a process of its own, because the shape checks of the other tests do not compile."""

import subprocess
import sys

STEPS = """
import itertools, torch
from dataclasses import replace
from pantomim.engine.runtime import autocast, compile_whole, generator
from pantomim.masking.block import BlockMasker
from pantomim.core.batch import Batch
from pantomim.methods.beit import BEiTConfig, beit_encoder
from pantomim.targets.pixels import PixelTargetConfig
from pantomim.targets.tokens import TokenTargetConfig

torch.set_num_threads(1)
torch._dynamo.config.error_on_recompile = True
cpu = torch.device("cpu")
encoder = replace(beit_encoder("base"), image_size=(16, 16), patch_size=4, width=16, depth=2, heads=2, drop_path=0.5)
target = TokenTargetConfig(tokenizer="random-projection", vocabulary=32)
config = BEiTConfig(encoder=encoder, masker=BlockMasker(exact=False, min_area=2), target=target)
blocks = replace(encoder, relative_position="blocks", position="learned")
for changes in ({}, {"encoder": blocks}, {"target": PixelTargetConfig()}):
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
        assert losses[0].dtype == torch.float32
        losses[0].backward()
    counts = torch._dynamo.utils.counters
    assert counts["stats"]["unique_graphs"] == 1, (changes, counts)
    assert not counts["graph_break"], (changes, counts)
print("one graph")
"""


def test_one_graph_though_the_number_of_hidden_patches_varies() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "one graph", done.stderr
