"""The compiled forward; in a process of its own, because the shape checks of the other tests do not compile."""

import os
import subprocess
import sys
from pathlib import Path

STEPS = """
import itertools, torch
from tiny import DECODER, ENCODER
from pantomim.engine.runtime import autocast, compile_whole, generator
from pantomim.core.batch import Batch
from pantomim.methods.mae import MAEConfig

torch.set_num_threads(1)
torch._dynamo.config.error_on_recompile = True
cpu = torch.device("cpu")
method = MAEConfig(encoder=ENCODER, decoder=DECODER).build().train()
names = list(method.state_dict())
compile_whole(method, backend="eager")
for step, start in itertools.product(range(3), (0, 4)):
    batch = Batch(torch.rand(4, 3, 16, 16), torch.arange(4), None, start=start, total=8)
    draws = method.draw(batch, step, generator(0, step, cpu))
    with autocast(cpu, torch.bfloat16):
        loss = method(batch, draws)["loss"]
    loss.backward()
    with autocast(cpu, torch.bfloat16):
        eager = method.forward(batch, draws)["loss"]
    assert torch.equal(loss, eager), (loss, eager)
assert list(method.state_dict()) == names
counts = torch._dynamo.utils.counters
assert counts["stats"]["unique_graphs"] == 1, counts
assert not counts["graph_break"], counts
print("one graph")
"""


def test_one_graph_for_all_steps_and_micro_batches() -> None:
    tests = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(tests)}
    done = subprocess.run([sys.executable, "-c", STEPS], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "one graph", done.stderr
