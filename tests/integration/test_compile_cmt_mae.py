"""One graph each of CMT-MAE and MILAN; in its own process, as the shape checks of the other tests do not compile."""

import subprocess
import sys

STEPS = """
import torch
from pantomim.engine.runtime import autocast, compile_whole, generator
from pantomim.core.batch import Batch
from pantomim.methods.cmt_mae import CMTMAEConfig
from pantomim.methods.milan import MILANConfig
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.vit import EncoderConfig
from pantomim.targets.pair import Concat
from pantomim.teachers.choice import TeacherConfig
from pantomim.teachers.mixing import Mixing

torch.set_num_threads(1)
torch._dynamo.config.error_on_recompile = True
cpu = torch.device("cpu")
encoder = EncoderConfig(image_size=(16, 16), patch_size=4, width=16, depth=2, heads=2)
decoder, teacher = DecoderConfig(width=16, depth=1, heads=2), TeacherConfig(source="random", output="norm")
parts = {"encoder": encoder, "decoder": decoder, "teacher": teacher}
mixing = Mixing(warmup_share=0.5)
for config in (
    CMTMAEConfig(**parts, mixing=mixing),
    CMTMAEConfig(**parts, mixing=mixing, target=Concat(), pixel_weight=0.1),
    MILANConfig(**parts),
):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    method = config.build(4).train()
    compile_whole(method, backend="eager")
    for step in range(4):
        batch = Batch(torch.rand(4, 3, 16, 16), torch.arange(4), None, total=4)
        draws = method.draw(batch, step, generator(0, step, cpu))
        with autocast(cpu, torch.bfloat16):
            losses = [forward(batch, draws)["loss"] for forward in (method, method.forward)]
        assert torch.equal(*losses), losses
        losses[0].backward()
        method.update_ema(step)
    counts = torch._dynamo.utils.counters
    assert counts["stats"]["unique_graphs"] == 1, counts
    assert not counts["graph_break"], counts
print("one graph each")
"""


def test_one_graph_over_both_phases() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "one graph each", done.stderr
