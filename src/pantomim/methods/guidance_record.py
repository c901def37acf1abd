"""Do masks that attention guides still change? The same few images, looked at from time to time through a whole run."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

LOOKS = 22  # in a run, evenly spread
NUM_IMAGES = 8  # that are looked at
MAPS = ("teacher", "student", "mask")


class GuidanceRecord(nn.Module):
    """What guides the masks of the first images of a run, as the run first saw them, and what would be hidden.

    All of it lies in buffers: a run that goes on has it, and the last checkpoint tells of the whole run. What is not
    there (yet) is NaN, and -1 in `steps`.

    Args:
        in_chans: Channels of the images.
        image_size: Their height and width.
        num_patches: Patches of an image.
    """

    images: Float[Tensor, "K C H W"]
    maps: Float[Tensor, "looks maps K N"]
    masked: Bool[Tensor, "looks K N"]
    steps: Tensor

    def __init__(self, in_chans: int, image_size: tuple[int, int], num_patches: int) -> None:
        super().__init__()
        self.register_buffer("images", torch.full((NUM_IMAGES, in_chans, *image_size), torch.nan))
        self.register_buffer("maps", torch.full((LOOKS, len(MAPS), NUM_IMAGES, num_patches), torch.nan))
        self.register_buffer("masked", torch.zeros(LOOKS, NUM_IMAGES, num_patches, dtype=torch.bool))
        self.register_buffer("steps", torch.full((LOOKS,), -1))
        self._due: list[int] = []
        self._seen = -1

    def begin(self, total: int) -> None:
        """Once before the loop: the steps of the whole run."""
        self._due = sorted({round(look * (total - 1) / (LOOKS - 1)) for look in range(LOOKS)})

    def is_due(self, step: int) -> bool:
        """Whether this is a step to look at, and it has not been looked at."""
        return step in self._due and step != self._seen

    def meet(self, images: Float[Tensor, "B C H W"]) -> None:
        """Take the images to look at, over and over if there are too few."""
        self.images.copy_(images[torch.arange(NUM_IMAGES, device=images.device) % len(images)])

    def add(self, step: int, maps: dict[str, Float[Tensor, "K N"]], masked: Bool[Tensor, "K N"]) -> None:
        """What was seen at a step that is due."""
        look, self._seen = self._due.index(step), step
        self.masked[look] = masked
        self.steps[look] = step
        for place, name in enumerate(MAPS):
            if name in maps:
                self.maps[look, place] = maps[name]

    def overlap(self, step: int) -> Float[Tensor, ""]:
        """Share of what was hidden at the last look that was so at the look before too; NaN until there are two."""
        looks = sum(due <= step for due in self._due)
        if looks < 2:
            return self.maps.new_tensor(torch.nan)
        return overlap(self.masked[looks - 2], self.masked[looks - 1])


def overlap(before: Bool[Tensor, "K N"], now: Bool[Tensor, "K N"]) -> Float[Tensor, ""]:
    """Share of what is hidden now that was hidden before; masks by chance overlap by the ratio that they hide."""
    return (before & now).sum() / now.sum()
