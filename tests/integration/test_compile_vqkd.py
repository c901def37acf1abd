"""The compiled forward of VQ-KD; in a process of its own, as the shape checks do not compile."""

import subprocess
import sys

import pytest

pytest.importorskip("vector_quantize_pytorch")

STEPS = """
import torch
from pantomim.engine.runtime import autocast, compile_whole, generator
from pantomim.core.batch import Batch
from pantomim.methods.vqkd import VQKDConfig
from pantomim.nn.vit import EncoderConfig
from pantomim.teachers.choice import TeacherConfig

torch.set_num_threads(1)
torch._dynamo.config.error_on_recompile = True
cpu = torch.device("cpu")
encoder = EncoderConfig((8, 8), 4, 3, 16, 1, 2, position="learned", mean=(0.5,) * 3, std=(0.5,) * 3)
teacher = TeacherConfig("random")
method = VQKDConfig(encoder=encoder, decoder_depth=1, vocabulary=6, code_width=4, teacher=teacher).build().train()
compile_whole(method, backend="eager")
for step in range(3):
    batch = Batch(torch.rand(4, 3, 8, 8), total=4)
    draws = method.draw(batch, step, generator(0, step, cpu))
    with autocast(cpu, torch.bfloat16):
        loss = method(batch, draws)["loss"]
    loss.backward()
    with autocast(cpu, torch.bfloat16):
        eager = method.forward(batch, draws)["loss"]
    assert torch.equal(loss, eager), (loss, eager)
    method.update_ema(step)
counts = torch._dynamo.utils.counters
assert counts["stats"]["unique_graphs"] == 1, counts
assert not counts["graph_break"], counts
print("one graph")
"""


def test_one_graph_for_all_steps() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "one graph", done.stderr
