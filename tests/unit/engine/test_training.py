"""What a step draws, whatever part of the global batch a process has."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compiled_forwards import CASES, DROPPING
from tiny import ENCODER, tiny_run
from torch import Tensor

from pantomim.core.batch import Batch
from pantomim.engine.runtime import start_accelerator
from pantomim.engine.training import Training
from pantomim.methods.mocov3 import MoCoV3Config
from pantomim.nn.blocks import DropPath
from pantomim.nn.segmenter import UPerNetConfig

DROPPED = {
    "beit": CASES["beit"],
    "cae, which encodes twice": replace(CASES["cae"], encoder=replace(CASES["cae"].encoder, drop_path=0.5)),
    "dbot": CASES["dbot"],
    "milan": replace(CASES["milan"], **DROPPING),
    "ijepa, contexts in turn": replace(CASES["ijepa"], encoder=replace(CASES["ijepa"].encoder, drop_path=0.5)),
    "mocov3": MoCoV3Config(encoder=replace(ENCODER, drop_path=0.5), hidden=16, dim=8),
    "supervised": CASES["supervised"],
    "segment, channels of the heads": replace(
        CASES["segment"], head=UPerNetConfig(channels=8, auxiliary_channels=8, dropout=0.5)
    ),
}


@pytest.mark.parametrize("name", DROPPED)
def test_parts_of_a_batch_draw_the_depths_of_the_whole(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, size = DROPPED[name].build(10), 8
    config = replace(tiny_run(tmp_path, batch_size=size), method=DROPPED[name])
    training = Training(config, method, 10, 0, start_accelerator(config.runtime, tmp_path))
    needs = method.requirements
    images, second = torch.rand(2, size, needs.in_chans, *needs.image_size)
    whole = Batch(
        *(images, torch.arange(size), torch.randint(4, (size,)), 0, size),
        *(second, torch.randint(5, (size, *needs.image_size))),
    )
    halves = [_rows(whole, slice(0, 4)), _rows(whole, slice(4, 8))]
    drawn: dict[str, list[Tensor]] = {}
    names = {part: name for name, part in method.named_modules()}
    own = DropPath.forward

    def forward(part: DropPath, branch: Tensor) -> Tensor:
        factors = own(part, torch.ones_like(branch))
        if part.training and part.rate:
            drawn.setdefault(names[part], []).append(factors.flatten(part.axes)[..., 0])
        return branch * factors

    monkeypatch.setattr(DropPath, "forward", forward)

    def depths(*steps: list[Batch]) -> list[Tensor]:
        """Of each call of each part, for the whole batch: images last but for channels."""
        drawn.clear()
        for batches in steps:
            training.step(3, batches)
        parts = sum(map(len, steps))
        assert drawn
        return [
            torch.cat([call.unflatten(0, (-1, size // parts)) for call in calls[k :: len(calls) // parts]], dim=1)
            for calls in drawn.values()
            for k in range(len(calls) // parts)
        ]

    expected = depths([whole])
    assert sum((factors == 0).sum() for factors in expected) > 0
    for found in (depths([halves[0]], [halves[1]]), depths(halves)):  # two processes; two micro-batches
        assert all(map(torch.equal, found, expected))
        assert len(found) == len(expected)
    assert all(part.rows is None for part in names if isinstance(part, DropPath))


def _rows(batch: Batch, rows: slice) -> Batch:
    named = ("images", "ids", "labels", "second", "masks")
    return replace(batch, start=rows.start, **{name: getattr(batch, name)[rows] for name in named})
