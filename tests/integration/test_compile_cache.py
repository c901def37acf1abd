"""Answers from disk in a compiled forward; in a process of its own, as shape checks do not compile."""

import subprocess
import sys

STEPS = """
import sys
import numpy as np, torch
from accelerate import Accelerator
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, "tests")
from tiny import ENCODER, tiny_images, tiny_run
from pantomim.data.transforms import Crop
from pantomim.engine.cache import remember
from pantomim.engine.runtime import compile_whole, generator
from pantomim.engine.setup import training_images
from pantomim.methods.base import Batch
from pantomim.methods.beit import BEiTConfig
from pantomim.masking.random import RandomMasker
from pantomim.targets.features import FeatureTargetConfig
from pantomim.teachers.choice import TeacherConfig

torch.set_num_threads(1)
torch._dynamo.config.error_on_recompile = True
cpu = torch.device("cpu")
target = FeatureTargetConfig(teacher=TeacherConfig(source="random"))
config = tiny_run(tiny_images(Path(sys.argv[1]) / "tiny.npz", num_images=20), method=BEiTConfig(
    encoder=ENCODER, masker=RandomMasker(ratio=0.5), target=target))
config = replace(config, data=replace(config.data, crop=Crop("none", flip=False)),
                 runtime=replace(config.runtime, cache=True))
dataset = training_images(config.data)
method = config.method.build()
honest = method.target.teacher.forward
memories = remember(config, method, dataset, Accelerator(cpu=True), rows=4, dtype=torch.float32)
compile_whole(method, backend="eager")
images = torch.from_numpy(dataset.array(1.0)).float() / 255
for step in range(4):
    ids = torch.arange(4) * 3 + step
    batch = Batch(images[ids], ids, None, 0, 4)
    memories.look_up(batch, np.zeros(4, dtype=bool))
    assert torch.equal(memories.parts[0].known.patches, honest(batch.images).patches)
    draws = method.draw(batch, step, generator(0, step, cpu))
    loss = method(batch, draws)["loss"]
    assert torch.equal(loss, method.forward(batch, draws)["loss"])
print("one graph")
"""


def test_one_graph_for_all_steps(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PANTOMIM_CACHE", str(tmp_path / "cache"))
    done = subprocess.run([sys.executable, "-c", STEPS, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("one graph"), done.stderr
