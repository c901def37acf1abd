"""Probing: what a head can read from a frozen encoder; the head alone is trained.

    loss = mean over images of cross-entropy(head(features(image)), class)

Linear: batch norm without weights and a linear layer, on one vector an image (MAE, CAE). Attentive: one learned query
reads all tokens (CAE). What is kept is the last step, as in the papers.

Papers: He et al. 2022, arXiv:2111.06377, appendix A.1 and Table 10; Chen et al., arXiv:2202.03026.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen
from pantomim.core.modes import Evaluated
from pantomim.core.precision import at_least_float32
from pantomim.core.ranges import AtLeastOne, AtLeastTwo, Positive, ShareBelowOne
from pantomim.methods.base import Requirements
from pantomim.methods.task import ClassTask
from pantomim.nn.heads import AttentiveHead, LinearHead


@frozen
class ProbeConfig:
    """What decides a probe, but for the frozen encoder."""

    kind: Literal["probe"] = "probe"
    # Linear, normalised over all images of a step, which come at once; or attentive, normalised over each micro-batch,
    # as over the images of each of CAE's devices
    head: Literal["linear", "attentive"] = "linear"
    num_classes: AtLeastTwo = 1000  # Classes of the labels
    heads: AtLeastOne = 12  # Of an attentive head's attention
    batch_statistics: bool = False  # An attentive head normalises test images by the batch that they are in, too
    # Share of the probability that is spread evenly over all classes; the papers have none
    label_smoothing: ShareBelowOne = 0.0
    chunk: AtLeastOne = 256  # Images that the encoder sees at once
    test_margin: Positive = 256 / 224  # The shorter side of a test image over that of its centre, which is looked at

    def build(self, features: "Frozen", image_size: tuple[int, int], in_chans: int = 3) -> "Probe":
        """The probe of a frozen encoder; its head is initialised from torch's global generator."""
        return Probe(self, features, image_size, in_chans)


class Frozen(Evaluated):
    """What `read` takes from a network that is never trained: in evaluation mode, without gradient.

    The network is taken over, not copied.
    """

    frozen = True

    def __init__(self, network: nn.Module, read: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.read = network.requires_grad_(False), read
        self.eval()

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B *tokens D"]:
        """A vector or a row of tokens for each of the scaled images."""
        return at_least_float32(self.read(self.network, images))


class Probe(ClassTask):
    """A head on frozen features."""

    model: LinearHead | AttentiveHead

    def __init__(self, config: ProbeConfig, features: Frozen, image_size: tuple[int, int], in_chans: int) -> None:
        super().__init__()
        self.config, self.num_classes, self.features = config, config.num_classes, features
        blank = torch.zeros(1, in_chans, *image_size)
        width = features(blank.to(next(features.parameters(), blank))).shape[-1]
        linear = config.head == "linear"
        self.model = (
            LinearHead(width, config.num_classes)
            if linear
            else AttentiveHead(width, config.heads, config.num_classes, config.batch_statistics)
        )
        self.requirements = Requirements(in_chans, image_size, 1, whole_batch=linear, test_margin=config.test_margin)

    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> None:
        """Nothing but the crops is random, and these are the stream's."""

    def forward(self, batch: Batch, draws: None = None) -> dict[str, Tensor]:
        """Cross-entropy and accuracy."""
        assert batch.labels is not None
        logits = self.logits(self.model, batch.images)  # (B, classes)
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.config.label_smoothing)
        return {"loss": loss, "accuracy": (logits.argmax(dim=1) == batch.labels).float().mean()}

    def logits(self, model: nn.Module, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B classes"]:
        """By the head, or by a copy of it."""
        features = torch.cat([self.features(chunk) for chunk in images.split(self.config.chunk)])
        return model(features)  # type: ignore[no-any-return]

    def exports(self) -> dict[str, Any]:
        """The head as it is after the last step."""
        return {"predictor": self.model.state_dict()}
