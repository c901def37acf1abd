"""What everything that can be predicted has in common: targets of images, and the loss of a prediction."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

from jaxtyping import Float, Int
from torch import Tensor

from pantomim.core.modes import Evaluated
from pantomim.nn.tokens import take
from pantomim.targets.distance import Distance


class Target(Evaluated, ABC):
    """What a masked patch is to be predicted as; always in evaluation mode, never a gradient."""

    dim: int  # width of the prediction of a patch: pixel values, feature width, or size of a vocabulary
    distance: Distance  # of a prediction; a target whose loss is another one has its own `loss`

    @abstractmethod
    def forward(self, images: Float[Tensor, "B C H W"]) -> Tensor:
        """The target of every patch of whole, scaled images: (B, N, K), or (B, N) ids; no gradient."""

    def at(self, images: Float[Tensor, "B C H W"], ids: Int[Tensor, "B M"]) -> Tensor:
        """The targets of the patches `ids` alone: (B, M, K), or (B, M) ids."""
        return take(self(images), ids)

    def loss(
        self, prediction: Float[Tensor, "B M K"], target: Tensor, weight: Float[Tensor, "B M"] | None = None
    ) -> Float[Tensor, ""]:
        """The mean over all patches of the batch together, in float32 at least; one of `weight` 0 is padding.

        `target` is (B, M, K), or (B, M) ids, of the patches that were predicted.
        """
        return self.distance(prediction, target, weight)

    def metrics(
        self, prediction: Float[Tensor, "B M K"], target: Tensor, weight: Float[Tensor, "B M"] | None = None
    ) -> dict[str, Tensor]:
        """What is worth a curve beside the loss, such as that of `Distance.baseline`; arguments as of `loss`."""
        return {"baseline": self.distance.baseline(target, weight)}

    def check_data(self, batches: Iterable[Float[Tensor, "B C H W"]]) -> str | None:
        """A warning about the targets of the training images; None: nothing is wrong, images are not read."""
        return None
