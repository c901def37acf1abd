"""Probes of features that need no encoder, for tests of how heads are trained."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from pantomim.data.sources import open_source
from pantomim.evaluate.augmented import AugmentedProbe, Candidate, train_heads
from pantomim.evaluate.base import Scores
from pantomim.methods.probe import Frozen, ProbeConfig


def scores_of(
    readers: dict[str, Callable[[Tensor], Tensor]], probe: AugmentedProbe, head: ProbeConfig, work: Path
) -> dict[str, Scores]:
    """Scores of heads on what each reader makes of images of 8 x 8 pixels."""
    parts = {part: open_source(probe.data, part) for part in ("train", "test")}
    bench = SimpleNamespace(
        evaluation=probe,
        opened=SimpleNamespace(parts=parts),
        train=parts["train"],
        reference=SimpleNamespace(image_size=(8, 8), in_chans=3, scale=None, interpolation=None),
        device=torch.device("cpu"),
        work=work,
    )
    frozen = {name: Frozen(nn.Identity(), lambda _, images, read=read: read(images)) for name, read in readers.items()}
    return train_heads(probe, {name: Candidate(features, head) for name, features in frozen.items()}, bench)
