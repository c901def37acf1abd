"""MoCo v3's compiled forward; in a process of its own, because the shape checks of the other tests do not compile."""

import subprocess
import sys

STEPS = """
import torch
from dataclasses import replace
from pantomim.engine.runtime import autocast, compile_whole, generator
from pantomim.core.batch import Batch
from pantomim.methods.mocov3 import MoCoV3Config, moco_encoder

torch.set_num_threads(1)
torch._dynamo.config.error_on_recompile = True
cpu = torch.device("cpu")
encoder = replace(moco_encoder("base"), image_size=(16, 16), patch_size=4, width=16, depth=2, heads=2)
method = MoCoV3Config(encoder=encoder, hidden=16, dim=8).build(3).train()
compile_whole(method, backend="eager")
for step in range(3):
    batch = Batch(torch.rand(4, 3, 16, 16), torch.arange(4), None, total=4, second=torch.rand(4, 3, 16, 16))
    draws = method.draw(batch, step, generator(0, step, cpu))
    with autocast(cpu, torch.bfloat16):
        losses = [forward(batch, draws)["loss"] for forward in (method, method.forward)]
    assert torch.equal(*losses), losses
    losses[0].backward()
    method.update_ema(step)
counts = torch._dynamo.utils.counters
assert counts["stats"]["unique_graphs"] == 1, counts
assert not counts["graph_break"], counts
print("one graph")
"""


def test_one_graph() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "one graph", done.stderr
