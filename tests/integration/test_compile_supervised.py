"""The supervised baseline's compiled forward; in a process of its own, like BEiT's."""

import subprocess
import sys

STEPS = """
import itertools, torch
from pantomim.engine.runtime import autocast, compile_whole, generator
from pantomim.core.batch import Batch
from pantomim.methods.supervised import SupervisedConfig
from pantomim.nn.vit import EncoderConfig

torch.set_num_threads(1)
torch._dynamo.config.error_on_recompile = True
cpu = torch.device("cpu")
encoder = EncoderConfig(
    image_size=(16, 16), patch_size=4, width=16, depth=2, heads=2, drop_path=0.5, position="learned"
)
for pool in ("class", "mean"):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    method = SupervisedConfig(encoder=encoder, num_classes=5, pool=pool).build().train()
    compile_whole(method, backend="eager")
    for step, start in itertools.product(range(4), (0, 4)):
        labels = torch.randint(5, (4,))
        batch = Batch(torch.rand(4, 3, 16, 16), torch.arange(4), labels, start=start, total=8)
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
    assert counts["stats"]["unique_graphs"] == 1, (pool, counts)
    assert not counts["graph_break"], (pool, counts)
print("one graph")
"""


def test_one_graph_though_boxes_and_shares_differ() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "one graph", done.stderr
