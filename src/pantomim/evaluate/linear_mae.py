"""MAE's linear probe: a linear classifier on a frozen encoder's class token, trained on augmented images by LARS.

Paper: He et al. 2022, arXiv:2111.06377, appendix A.1 and Table 10; details as in the authors' `main_linprobe.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.frozen import frozen
from pantomim.data.dataset import Dataset
from pantomim.data.stream import Stream, evaluation_batches
from pantomim.data.transforms import Crop
from pantomim.evaluate.parts import known_classes, renumber
from pantomim.evaluate.scores import top1, top1_per_class
from pantomim.optim import LARS, cosine_schedule, scaled_lr

CROP = Crop(kind="single_draw", scale=(0.08, 1.0), aspect=(3 / 4, 4 / 3), flip=True)
TEST_MARGIN = 256 / 224  # the test image's shorter side over the crop's

Extractor = Callable[[Float[Tensor, "B C H W"]], Float[Tensor, "B D"]]


@frozen
class MAEProbe:
    """The paper's values. On sets far smaller than ImageNet, raise `base_lr`: there are fewer steps to learn in.

    Args:
        epochs: Passes over the training images; 50 suffice for ViT-L and H.
        warmup_epochs: Of these, with a rising rate.
        base_lr: Per 256 images.
        batch_size: At most; a smaller set is one batch.
        chunk: Images that the encoder sees at once.

    Deviation: batch statistics are those of the whole batch, not of each device's part.
    """

    epochs: int = 90
    warmup_epochs: int = 10
    base_lr: float = 0.1
    batch_size: int = 16384
    chunk: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                f"MAEProbe.warmup_epochs must be in [0, epochs); got {self.warmup_epochs} of {self.epochs}. "
                f"Train longer, or warm up shorter."
            )
        if self.base_lr <= 0 or self.batch_size < 2 or self.chunk < 1:
            raise ValueError(
                f"MAEProbe must have base_lr above 0, batch_size above 1 and chunk above 0; got {self.base_lr}, "
                f"{self.batch_size} and {self.chunk}."
            )


class Head(nn.Module):
    """BatchNorm without affine, then a linear layer: the only part that is trained."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.head = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B classes"]:
        """Logits."""
        return self.head(self.norm(features))


def linear_mae(
    extractors: dict[str, Extractor],
    train: Dataset,
    test: Dataset,
    image_size: tuple[int, int],
    probe: MAEProbe,
    *,
    seed: int,
    device: torch.device,
) -> dict[str, dict[str, Any]]:
    """Scores by name; all contenders see the same augmented batches.

    Args:
        extractors: Frozen; images in, one vector each out.
        train: With labels.
        test: With labels.
        image_size: Of the encoder.
        probe: How to train.
        seed: Of order, crops and heads.
        device: Where to compute.
    """
    assert train.labels is not None
    classes = known_classes(torch.from_numpy(train.labels))
    batch_size = min(probe.batch_size, len(train))
    micro = max(1, batch_size // probe.chunk)
    batch_size = batch_size // micro * micro
    stream = Stream(
        train, batch_size=batch_size, image_size=image_size, crop=CROP, seed=seed, device=device, micro=micro
    )
    heads: dict[str, Head] = {}
    optimisers: dict[str, LARS] = {}
    total, base = probe.epochs * stream.steps_per_epoch, scaled_lr(probe.base_lr, batch_size)
    for step, batches in enumerate(stream.batches(0, total)):
        epoch = step / stream.steps_per_epoch
        lr = cosine_schedule(epoch, base=base, minimum=0.0, warmup=probe.warmup_epochs, total=probe.epochs)
        labels = torch.cat([batch.labels for batch in batches if batch.labels is not None]).cpu()
        wanted = renumber(labels, classes, "train").to(device)
        for name, extractor in extractors.items():
            features = torch.cat([_frozen(extractor, batch.images) for batch in batches])
            if name not in heads:
                heads[name] = _seeded_head(features.shape[1], len(classes), seed).to(device)
                optimisers[name] = LARS(heads[name].parameters(), lr=0.0, weight_decay=0.0, momentum=0.9)
            optimiser = optimisers[name]
            for group in optimiser.param_groups:
                group["lr"] = lr
            optimiser.zero_grad()
            F.cross_entropy(heads[name](features), wanted).backward()
            optimiser.step()
    predictions, labels = predict(extractors, heads, test, image_size, probe.chunk, device)
    wanted = renumber(labels, classes, "test")
    return {
        name: {"top1": top1(guess, wanted), "top1_per_class": top1_per_class(guess, wanted)}
        for name, guess in predictions.items()
    }


def _frozen(extractor: Extractor, images: Tensor) -> Tensor:
    with torch.no_grad():
        return extractor(images).float()


def _seeded_head(width: int, num_classes: int, seed: int) -> Head:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Head(width, num_classes)


@torch.inference_mode()
def predict(
    extractors: Mapping[str, Callable[[Tensor], Tensor]],
    heads: Mapping[str, nn.Module],
    test: Dataset,
    image_size: tuple[int, int],
    chunk: int,
    device: torch.device,
) -> tuple[dict[str, Int[Tensor, " n"]], Int[Tensor, " n"]]:
    """Predictions of heads in evaluation mode on the centre of each image, a little magnified; and the labels."""
    assert test.labels is not None
    for head in heads.values():
        head.eval()
    height, width = image_size
    larger = (round(height * TEST_MARGIN), round(width * TEST_MARGIN))
    top, left = (larger[0] - height) // 2, (larger[1] - width) // 2
    guesses: dict[str, list[Tensor]] = {name: [] for name in extractors}
    labels: list[Tensor] = []
    for images, indices in evaluation_batches(test, larger, chunk, device):
        images = images[:, :, top : top + height, left : left + width]
        for name, extractor in extractors.items():
            guesses[name].append(heads[name](extractor(images).float()).argmax(dim=1).cpu())
        labels.append(torch.from_numpy(test.labels[indices]))
    return {name: torch.cat(parts) for name, parts in guesses.items()}, torch.cat(labels)
