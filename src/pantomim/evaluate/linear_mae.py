"""MAE's linear probe: a linear classifier on a frozen encoder's class token, trained on augmented images by LARS.

Paper: He et al. 2022, arXiv:2111.06377, appendix A.1 and Table 10; details as in the authors' `main_linprobe.py`.
"""

from functools import partial
from typing import Literal

import tyro
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.config import Duration, OptimConfig
from pantomim.core.frozen import frozen
from pantomim.data.stats import Stats, channel_stats
from pantomim.evaluate.augmented import AugmentedProbe, Candidate, train_heads
from pantomim.evaluate.base import Bench, Scores
from pantomim.evaluate.features import AnyEncoder, pixel_size, pixel_vector, views
from pantomim.methods.probe import Frozen, ProbeConfig


@frozen
class LinearMAE(AugmentedProbe):
    """A linear classifier on augmented images, with the paper's values for ViT-B; for ViT-L and H, 50 epochs suffice.

    On sets far smaller than ImageNet there are fewer steps to learn in: choose a higher `base_lr` by the score on
    held-out images.

    Deviation: batch statistics are those of the whole batch, not of each device's part.
    """

    protocol: tyro.conf.Suppress[Literal["linear_mae"]] = "linear_mae"

    @property
    def optim(self) -> OptimConfig:
        """LARS without weight decay; half a cosine after the warm-up."""
        warmup = Duration(epochs=self.warmup_epochs)
        return OptimConfig(base_lr=self.base_lr, warmup=warmup, weight_decay=0.0, optimiser="lars")

    def run(self, bench: Bench) -> dict[str, Scores]:
        """Of the class token, or the mean of patches where there is none."""
        features = {name: Frozen(encoder, _vector) for name, encoder in bench.encoders.items()}
        if bench.pixels:
            read = partial(_pixels, size=bench.reference.image_size, stats=channel_stats(bench.train))
            features["pixels"] = Frozen(nn.Identity(), read)
        candidates = {name: Candidate(of_images, ProbeConfig(head="linear")) for name, of_images in features.items()}
        return train_heads(self, candidates, bench)


def _vector(encoder: AnyEncoder, images: Tensor) -> Tensor:
    found = views(encoder, encoder(images))
    return found.get("class", found["mean"])


def _pixels(_: nn.Module, images: Tensor, size: tuple[int, int], stats: Stats) -> Tensor:
    smaller = pixel_size(size, images.shape[1])
    if smaller != size:
        images = F.interpolate(images, smaller, mode="bilinear", antialias=True)
    return pixel_vector(images, stats)
