"""What everything that can be predicted has in common: a value for each patch, and a way to score a prediction."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

from jaxtyping import Float, Int
from torch import Tensor, nn

from pantomim.nn.vit import Encoder


class Target(nn.Module, ABC):
    """What a hidden patch is to be predicted as; always in evaluation mode, never a gradient.

    Args:
        dim: Numbers that are predicted for a patch: pixel values, feature width, or size of a vocabulary.
    """

    dim: int

    @abstractmethod
    def forward(self, images: Float[Tensor, "B C H W"]) -> Tensor:
        """The target of every patch of whole, scaled images: (B, N, K), or (B, N) ids; no gradient."""

    def check_data(self, batches: Iterable[Float[Tensor, "B C H W"]]) -> str | None:
        """What to say before a run of what would be predicted of its images; None: nothing, images are not read."""
        return None

    @abstractmethod
    def score(
        self,
        prediction: Float[Tensor, "B M K"],
        images: Float[Tensor, "B C H W"],
        ids: Int[Tensor, "B M"],
        weight: Float[Tensor, "B M"] | None = None,
    ) -> dict[str, Tensor]:
        """How far a prediction of the patches `ids` is from the target: "loss", and what else is worth a curve.

        Args:
            prediction: Of the patches `ids`.
            images: Whole images.
            ids: Which patches were predicted.
            weight: 0 for padding in `ids`, else 1; None: nothing is padded.
        """

    def follow(self, encoder: Encoder) -> None:
        """Called once after each optimiser step; a teacher that is a moving average moves."""

    def start(self, encoder: Encoder) -> None:
        """Called once other weights have been put into the encoder before the first step."""

    def train(self, mode: bool = True) -> "Target":
        """Stay in evaluation mode, whatever the method does."""
        return super().train(False)
