"""Teachers in a compiled forward; in a process of its own, as the shape checks of the other tests do not compile."""

import subprocess
import sys
from pathlib import Path

STEPS = """
import torch
from pantomim.nn.vit import EncoderConfig
from pantomim.teachers.choice import TeacherConfig

torch.set_num_threads(1)
torch._dynamo.config.error_on_recompile = True
student = EncoderConfig(image_size=(16, 16), patch_size=4, width=16, depth=2, heads=2).build()
images = torch.rand(2, 3, 16, 16)
for config in (TeacherConfig("random"), TeacherConfig("ema", blocks=2), TeacherConfig("random", depth=0)):
    teacher = config.build(student)
    for query in (None, *teacher.queries[:1]):
        torch._dynamo.reset()
        def forward(images):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return teacher(images, query)
        compiled = torch.compile(forward, fullgraph=True, dynamic=False, backend="aot_eager")
        torch.testing.assert_close(compiled(images), teacher(images, query))

import json, os, sys, timm, transformers
os.environ["HF_HUB_OFFLINE"] = "1"
folder = sys.argv[1]
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=16, patch_size=4)).save_pretrained(folder)
with open(f"{folder}/preprocessor_config.json", "w") as file:
    json.dump({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, file)
torch.save(timm.create_model("test_vit2", num_classes=0).state_dict(), f"{folder}/timm.pth")
for source in (f"timm:test_vit2@{folder}/timm.pth", f"hf:{folder}"):
    torch._dynamo.reset()
    teacher = TeacherConfig(source).build(student)
    compiled = torch.compile(lambda images: teacher(images), fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(images).patches, teacher(images).patches)
print("one graph")
"""


def test_features_and_attention_in_one_graph(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", STEPS, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "one graph", done.stderr
