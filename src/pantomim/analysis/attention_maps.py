"""What the heads of a block attend to, laid over the photos."""

from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pantomim.analysis.blocks import block_features
from pantomim.analysis.pictures import PictureRows, Row, cells
from pantomim.analysis.views import EncoderPictures, Shown
from pantomim.core.frozen import frozen
from pantomim.core.ranges import AtLeastOne
from pantomim.evaluate.features import AnyEncoder


@frozen
class AttentionMaps(EncoderPictures):
    """What each head of a block attends to, laid over photos."""

    name: ClassVar[str] = "attention"
    title: ClassVar[str] = "What the heads attend to"
    usual: ClassVar[int] = 6
    block: AtLeastOne | None = None  # Counted from 1; None: the last

    def look(self, shown: Shown) -> PictureRows:
        """A row a photo: the photo, the mean over heads, and each head."""
        encoder = shown.encoder
        images, names, pictures = shown.photos(self.count or self.usual, self.seed)
        attention = torch.cat([attended(encoder, image, self.block) for image in images.split(1)])
        maps = attention[:, :, encoder.num_prefix :].unflatten(2, encoder.grid).numpy()  # (B, heads, rows, cols)
        maps = np.concatenate([maps.mean(axis=1, keepdims=True), maps], axis=1)
        items = ("photo", "mean of heads", *(f"head {number}" for number in range(1, maps.shape[1])))
        rows = []
        for name, photo, heads in zip(names, pictures, maps, strict=True):
            colour = photo.repeat(3 // photo.shape[2], axis=2)
            rows.append(Row(name, "", np.concatenate([colour[None], laid_over(photo, heads)]), items))
        elsewhere = 1.0 - attention[:, :, encoder.num_prefix :].sum(dim=2).mean().item()
        caption = (
            f"{self.drawn(shown.dataset, len(names))} Softmaxed attention of "
            f"{f'block {self.block}' if self.block else 'the last block'}; each picture is scaled to its largest. "
            f"{100 * elsewhere:.0f} % of the attention goes to prefix tokens, which have no place in the picture."
        )
        query = "the class token attends to" if encoder.has_class_token else "all patches attend to on average"
        lead = f"Bright patches are those that {query}; a head that follows an object lights up its shape."
        return PictureRows(items, tuple(rows), caption, lead)


def attended(
    encoder: AnyEncoder, images: Float[Tensor, "B C H W"], block: int | None = None
) -> Float[Tensor, "B heads T"]:
    """Attention of the class token (else the mean patch) in a block (None: the last) to all tokens; sums to 1."""
    with torch.inference_mode():
        for count, features in enumerate(block_features(encoder, images, need_attention=True), 1):
            if block in (None, count):
                weights = features.attention  # of large images, that of all blocks is gigabytes
    if block is not None and block > count:
        raise ValueError(f"AttentionMaps.block must be in [1, {count}], the encoder's blocks; got {block}.")
    assert weights is not None
    return weights[:, :, 0] if encoder.has_class_token else weights[:, :, encoder.num_prefix :].mean(dim=2)


def laid_over(
    photo: UInt8[np.ndarray, "H W C"], maps: Float[np.ndarray, "n rows cols"]
) -> UInt8[np.ndarray, "n H W 3"]:
    """Maps in colours over the photo in gray, each scaled to its largest value."""
    heat = cells(maps / maps.max(axis=(1, 2), keepdims=True), photo.shape[:2])[..., None]  # (n, H, W, 1)
    gray = photo.mean(axis=2, keepdims=True)
    import matplotlib  # takes long, so only where it is needed

    colours = 255.0 * matplotlib.colormaps["inferno"](heat[..., 0])[..., :3]
    weight = 0.2 + 0.6 * heat  # where nothing is attended to, the photo alone is seen, darker
    return ((1.0 - weight) * 0.8 * gray + weight * colours).round().astype(np.uint8)
