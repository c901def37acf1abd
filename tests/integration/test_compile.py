"""Compiled forwards, in processes of their own: the shape checks of the other tests do not compile."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from compiled_forwards import CASES

from pantomim.methods import METHODS

TESTS = Path(__file__).parents[1]

TEACHERS = """
import json, os, sys, timm, torch, transformers
from pantomim.nn.vit import EncoderConfig
from pantomim.teachers.choice import TeacherConfig

torch.set_num_threads(1)
torch._dynamo.config.error_on_recompile = True
os.environ["HF_HUB_OFFLINE"] = "1"
student = EncoderConfig(image_size=(16, 16), patch_size=4, width=16, depth=2, heads=2).build()
images, folder = torch.rand(2, 3, 16, 16), sys.argv[1]
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=16, patch_size=4)).save_pretrained(folder)
with open(f"{folder}/preprocessor_config.json", "w") as file:
    json.dump({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, file)
torch.save(timm.create_model("test_vit2", num_classes=0).state_dict(), f"{folder}/timm.pth")
ours = (TeacherConfig("random"), TeacherConfig("ema", blocks=2), TeacherConfig("random", depth=0))
for config in (*ours, TeacherConfig(f"timm:test_vit2@{folder}/timm.pth"), TeacherConfig(f"hf:{folder}")):
    teacher = config.build(student)
    for query in (None, *(teacher.queries[:1] if config in ours else ())):
        torch._dynamo.reset()
        ask = lambda images: teacher(images, query)
        compiled = torch.compile(ask, fullgraph=True, dynamic=False, backend="aot_eager")
        torch.testing.assert_close(compiled(images), teacher(images, query))
print("one graph each")
"""

CROPS = """
import sys, torch
from functools import partial
from pathlib import Path
from tiny import tiny_images
from pantomim.data.augment import Augment
from pantomim.data.sources import open_source
from pantomim.data.stream import Stream
from pantomim.data.transforms import Crop, View

torch.set_num_threads(1)
torch.compile = partial(torch.compile, backend="aot_eager")
torch._dynamo.config.error_on_recompile = True
dataset = open_source(str(tiny_images(Path(sys.argv[1], "set.npz"), side=20)), "train")
how = dict(batch_size=16, image_size=(16, 16), crop=Crop(), seed=3, device="cpu", micro=2)
second = View(augment=Augment(blur=0.5))
batches = [list(Stream(dataset, **how, second=second, compiled=on).batches(0, 6)) for on in (False, True)]
for eager, compiled in zip(*(sum(each, []) for each in batches), strict=True):
    assert not torch.equal(eager.images, eager.second)
    torch.testing.assert_close(compiled.images, eager.images)
    torch.testing.assert_close(compiled.second, eager.second)
print(torch._dynamo.utils.counters["stats"]["unique_graphs"], "graph")
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )


pytestmark = pytest.mark.xdist_group("compile")  # one process makes what all look at


@pytest.fixture(scope="module")
def compiled() -> dict[str, str]:
    done = run(str(TESTS / "compiled_forwards.py"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_one_graph_for_all_steps_and_micro_batches(name: str, compiled: dict[str, str]) -> None:
    assert not compiled[name], compiled[name]


def test_every_method_is_compiled() -> None:
    assert {config.kind for config in CASES.values()} == {method.kind for method in METHODS}


@pytest.mark.slow
def test_teachers_in_one_graph(tmp_path: Path) -> None:
    done = run("-c", TEACHERS, str(tmp_path))
    assert done.stdout.strip() == "one graph each", done.stderr


def test_compiled_crops_are_those_of_eager_ones(tmp_path: Path) -> None:
    done = run("-c", CROPS, str(tmp_path))
    assert done.stdout.strip() == "1 graph", done.stderr
