"""The compiled forward of dBOT, its teacher included; in a process of its own, as for MAE."""

import os
import subprocess
import sys
from pathlib import Path

STEPS = """
import itertools, torch
from dataclasses import replace
from tiny import DECODER, ENCODER
from pantomim.engine.runtime import autocast, compile_whole, generator
from pantomim.core.batch import Batch
from pantomim.methods.dbot import DBOTConfig
from pantomim.teachers.choice import TeacherConfig

torch.set_num_threads(1)
torch._dynamo.config.error_on_recompile = True
cpu = torch.device("cpu")
teachers = (TeacherConfig("random"), TeacherConfig("random", depth=0), TeacherConfig("ema", output="norm"))
for teacher in teachers:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    encoder, decoder = replace(ENCODER, drop_path=0.2), replace(DECODER, drop_path=0.2)
    method = DBOTConfig(encoder=encoder, decoder=decoder, teacher=teacher).build().train()
    compile_whole(method, backend="eager")
    for step, start in itertools.product(range(2), (0, 4)):
        batch = Batch(torch.rand(4, 3, 16, 16), torch.arange(4), None, start=start, total=8)
        draws = method.draw(batch, step, generator(0, step, cpu))
        with autocast(cpu, torch.bfloat16):
            torch.manual_seed(step)
            loss = method(batch, draws)["loss"]
            torch.manual_seed(step)
            eager = method.forward(batch, draws)["loss"]
        loss.backward()
        assert torch.equal(loss, eager), (loss, eager)
        method.update_ema(step)
    counts = torch._dynamo.utils.counters
    assert counts["stats"]["unique_graphs"] == 1, counts
    assert not counts["graph_break"], counts
print("one graph")
"""


def test_one_graph_for_all_steps_and_every_kind_of_teacher() -> None:
    tests = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", STEPS], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "one graph", done.stderr
