"""CAE's attentive probe: one learned query reads all tokens of a frozen encoder, trained on augmented images.

A linear probe on one vector shows what an average of patches, or the class token, happens to hold; the query may choose
which patches to read.

Paper: Chen et al., arXiv:2202.03026, "attentive probing"; details as in the authors' `run_attentive.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pantomim.core.frozen import frozen
from pantomim.data.dataset import Dataset
from pantomim.data.stream import Stream
from pantomim.evaluate.linear_mae import CROP, predict
from pantomim.evaluate.parts import known_classes, renumber
from pantomim.evaluate.scores import top1, top1_per_class
from pantomim.formats.wrapped import WrappedEncoder
from pantomim.nn.heads import AttentiveHead
from pantomim.nn.vit import Encoder
from pantomim.optim import beit_schedule, scaled_lr

Reader = Callable[[Float[Tensor, "B C H W"]], Float[Tensor, "B T D"]]
MOMENTUM = 0.9


@frozen
class AttentiveProbe:
    """The authors' values. On sets far smaller than ImageNet, raise `base_lr`: there are fewer steps to learn in.

    Args:
        epochs: Passes over the training images.
        warmup_epochs: Of these, with a rate that rises from 0.
        base_lr: Per 256 images; the authors' 0.4 at 8192.
        min_lr: At the end.
        batch_size: At most; a smaller set is one batch.
        chunk: Images that the encoder sees at once. Batch statistics are those of a chunk: the authors' devices have
            256 images each.
        heads: Of the probe's attention; None: as many as the encoder has.
    """

    epochs: int = 90
    warmup_epochs: int = 10
    base_lr: float = 0.0125
    min_lr: float = 1e-6
    batch_size: int = 8192
    chunk: int = 256
    heads: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                f"AttentiveProbe.warmup_epochs must be in [0, epochs); got {self.warmup_epochs} of {self.epochs}. "
                f"Train longer, or warm up shorter."
            )
        if not self.base_lr > self.min_lr >= 0:
            raise ValueError(
                f"AttentiveProbe.base_lr must be above min_lr, and that at least 0; got {self.base_lr} and "
                f"{self.min_lr}."
            )
        if self.batch_size < 2 or self.chunk < 2:
            raise ValueError(
                f"AttentiveProbe.batch_size and chunk must be at least 2, as batches are normalised; got "
                f"{self.batch_size} and {self.chunk}."
            )
        if self.heads is not None and self.heads < 1:
            raise ValueError(f"AttentiveProbe.heads must be at least 1; got {self.heads}.")


@dataclass(frozen=True)
class Read:
    """What the probe reads of an image.

    Args:
        tokens: Frozen; images in, tokens out.
        heads: Of the probe's attention; it divides their width.
    """

    tokens: Reader
    heads: int


def read_encoder(encoder: Encoder | WrappedEncoder, heads: int | None) -> Read:
    """All tokens of an encoder, prefix tokens first, after its final norm.

    Raises:
        ValueError: if the number of heads must be given, or does not divide the width.
    """
    heads = _heads(encoder) if heads is None else heads
    if heads is None or encoder.width % heads:
        raise ValueError(
            f"AttentiveProbe.heads must divide the encoder's width {encoder.width}; got {heads}. "
            f"Give a number: --attentive.heads N."
        )

    def tokens(images: Tensor) -> Tensor:
        latent = encoder(images)
        return torch.cat([latent.prefix, latent.patches], dim=1)

    return Read(tokens, heads)


def attentive(
    readers: dict[str, Read],
    train: Dataset,
    test: Dataset,
    image_size: tuple[int, int],
    probe: AttentiveProbe,
    *,
    test_batch_statistics: bool = False,
    seed: int,
    device: torch.device,
) -> dict[str, dict[str, Any]]:
    """Scores by name; all contenders see the same augmented batches. Nesterov SGD on the head alone.

    Args:
        readers: By contender.
        train: With labels.
        test: With labels.
        image_size: Of the encoder.
        probe: How to train.
        test_batch_statistics: Normalise test images by the chunk that they are in; see `AttentiveHead`. A chunk holds
            neighbours in the order of the files: where that is the order of classes, it gives labels away.
        seed: Of order, crops and heads.
        device: Where to compute.
    """
    assert train.labels is not None
    classes = known_classes(torch.from_numpy(train.labels))
    batch_size = min(probe.batch_size, len(train))
    micro = math.ceil(batch_size / probe.chunk)
    batch_size = batch_size // micro * micro
    stream = Stream(
        train, batch_size=batch_size, image_size=image_size, crop=CROP, seed=seed, device=device, micro=micro
    )
    heads: dict[str, AttentiveHead] = {}
    optimisers: dict[str, torch.optim.SGD] = {}
    total = probe.epochs * stream.steps_per_epoch
    base, warmup = scaled_lr(probe.base_lr, batch_size), probe.warmup_epochs * stream.steps_per_epoch
    for step, batches in enumerate(stream.batches(0, total)):
        lr = beit_schedule(step, base=base, minimum=probe.min_lr, warmup=warmup, total=total)
        for batch in batches:
            assert batch.labels is not None
            wanted = renumber(batch.labels.cpu(), classes, "train").to(device)
            for name, reader in readers.items():
                with torch.no_grad():
                    tokens = reader.tokens(batch.images).float()
                if name not in heads:
                    heads[name] = _seeded_head(tokens.shape[2], reader.heads, len(classes), test_batch_statistics, seed)
                    heads[name].to(device).train()
                    optimisers[name] = torch.optim.SGD(heads[name].parameters(), lr, MOMENTUM, nesterov=True)
                (F.cross_entropy(heads[name](tokens), wanted) / len(batches)).backward()
        for optimiser in optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = lr
            optimiser.step()
            optimiser.zero_grad()
    extractors = {name: reader.tokens for name, reader in readers.items()}
    predictions, labels = predict(extractors, heads, test, image_size, probe.chunk, device)
    wanted = renumber(labels, classes, "test")
    return {
        name: {"top1": top1(guess, wanted), "top1_per_class": top1_per_class(guess, wanted)}
        for name, guess in predictions.items()
    }


def _heads(encoder: Encoder | WrappedEncoder) -> int | None:
    """Attention heads of an encoder; None: it does not tell."""
    if isinstance(encoder, Encoder):
        return encoder.config.heads
    blocks = getattr(encoder.model, "blocks", None)
    return getattr(getattr(blocks[0], "attn", None), "num_heads", None) if blocks else None


def _seeded_head(width: int, heads: int, num_classes: int, test_batch_statistics: bool, seed: int) -> AttentiveHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AttentiveHead(width, heads, num_classes, test_batch_statistics)
