"""Teachers in a compiled forward; in a process of its own, as the shape checks of the other tests do not compile."""

import subprocess
import sys

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
print("one graph")
"""


def test_features_and_attention_in_one_graph() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "one graph", done.stderr
