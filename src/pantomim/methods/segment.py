"""Semantic segmentation: an encoder, a head and an auxiliary head learn the class of every pixel.

    loss = sum over pixels with a class of -log softmax(logits)[class] / number of all pixels   (head)
         + 0.4 * the same of the auxiliary head

Logits are enlarged to the pixels' size first. An image is tested whole, by windows of the encoder's size that overlap.

Source: UPerNet on plain ViTs as BEiT, CAE, dBOT (mmsegmentation 0.11) and ColorMAE (1.x) train it; UPerNet: Xiao et al.
    2018, arXiv:1807.10221.
"""

from dataclasses import field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pantomim.core.batch import IGNORE, Batch
from pantomim.core.frozen import frozen
from pantomim.core.ranges import AtLeastTwo, PositiveShare
from pantomim.core.scores import count_pixels, means
from pantomim.methods.base import Requirements
from pantomim.methods.task import Task
from pantomim.nn.segmenter import AUXILIARY_LEVEL, HeadConfig, Segmenter, UPerNetConfig, pixel_loss, segmented
from pantomim.nn.vit import EncoderConfig


@frozen
class SegmentConfig:
    """The parts of a segmenter."""

    kind: Literal["segment"] = "segment"
    # Sizes of the encoder; its image size is that of training crops and of the windows of a test
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    num_classes: AtLeastTwo = 150  # Classes of the masks
    head: HeadConfig = field(default_factory=UPerNetConfig)  # What stands on the encoder: "linear", "upernet" or "dpt"
    learn_positions: bool = True  # Train a fixed position table, too (MAE, dBOT; not CAE)
    stride: PositiveShare = 2 / 3  # Of the windows of a test, as a share of their size

    def build(self, steps: int | None = None) -> "Segment":
        """The method, initialised from torch's global generator."""
        return Segment(self)


class Segment(Task):
    """A segmenter, trained whole; `OptimConfig.freeze_blocks` leaves the encoder as it is."""

    metric: str = "miou"
    model: Segmenter
    final_norm: Tensor

    def __init__(self, config: SegmentConfig) -> None:
        super().__init__()
        self.config, encoder = config, config.encoder.build()
        if encoder.pos_embed is not None:
            encoder.pos_embed.requires_grad_(config.learn_positions or config.encoder.position == "learned")
        self.model = Segmenter(encoder, config.num_classes, config.head)
        # Weight and bias of the final norm that weights to start from had, and the head has no use for.
        self.register_buffer("final_norm", torch.stack([torch.ones(encoder.width), torch.zeros(encoder.width)]))
        norms = any(isinstance(part, nn.BatchNorm2d) for part in self.model.modules())
        self.requirements = Requirements.of(config.encoder, num_classes=config.num_classes, masks=True, gathers=norms)

    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> None:
        """Nothing: the batch is cut and changed already."""

    def forward(self, batch: Batch, draws: None) -> dict[str, Tensor]:
        """Both losses, their sum, and the accuracies of pixels; one loss where there is no auxiliary head."""
        model, labels = self.model, batch.masks  # (B, H, W)
        assert labels is not None, "checked before the first step"
        maps = model.neck(model.tap(batch.images))  # (B, D, _, _) each
        loss, accuracy = pixel_loss(model.head(maps), labels, IGNORE)
        if model.auxiliary is None:
            return {"loss": loss, "accuracy": accuracy}
        of_auxiliary, its_accuracy = pixel_loss(model.auxiliary(maps[AUXILIARY_LEVEL]), labels, IGNORE)
        weighted = model.auxiliary_weight * of_auxiliary
        apart = {"loss_head": loss, "loss_auxiliary": weighted, "accuracy_auxiliary": its_accuracy}
        return {"loss": loss + weighted, "accuracy": accuracy, **apart}

    @property
    def counts_shape(self) -> tuple[int, ...]:
        """See `count`."""
        return 3, self.config.num_classes

    def count(self, model: nn.Module, batch: Batch) -> Tensor:
        """Pixels by class, over all images: rightly predicted, predicted and labelled."""
        assert batch.masks is not None
        assert isinstance(model, Segmenter)
        guesses = segmented(model, batch.images, batch.masks.shape[1:], self.config.stride)
        return count_pixels(guesses, batch.masks, self.config.num_classes, ignore=IGNORE).sum(dim=0).double()

    def take_encoder(self, weights: dict[str, Tensor], table: str) -> tuple[dict[str, Tensor], list[str]]:
        """As of every task; a final norm that is left out is kept for the encoder that is exported."""
        if self.config.encoder.norms.final:
            self.final_norm.copy_(torch.stack([weights["norm.weight"], weights["norm.bias"]]))
        return super().take_encoder(weights, table)

    def scores(self, counts: Tensor) -> dict[str, float]:
        """Mean IoU, mean accuracy of classes, and accuracy of pixels."""
        return means(counts)

    def exports(self) -> dict[str, Any]:
        """The segmenter, and the encoder in it."""
        chosen = self.chosen
        assert isinstance(chosen, Segmenter)
        about = {"head": self.config.head, "stride": self.config.stride, "chosen": self.how_chosen()}
        return {"encoder": chosen.plain_encoder(self.final_norm), "segmenter": chosen, "about": about}
