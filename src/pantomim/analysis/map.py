"""All photos in the plane, like ones side by side."""

from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8

from pantomim.analysis.pictures import PictureRows, Row, shrunk
from pantomim.analysis.views import SAMPLE, EncoderPictures, Shown
from pantomim.core.frozen import frozen

WIDTH, HEIGHT = 1680, 1120  # of the map, in pixels, at most
ROOM = 6  # area of the map over that of all thumbnails, at most
LEAST_SPREAD = 10  # images, for t-SNE
DOT = 3


@frozen
class Map(EncoderPictures):
    """A map of the photos in two dimensions, with thumbnails."""

    name: ClassVar[str] = "map"
    title: ClassVar[str] = "Map of the photos"
    least: ClassVar[int] = 3
    usual: ClassVar[int] = SAMPLE
    layout: Literal["tsne", "pca"] = "tsne"  # How they are laid out; of fewer than ten images by PCA

    def look(self, shown: Shown) -> PictureRows:
        """One picture."""
        sample = shown.sample(self.count, self.seed)
        layout = self.layout if len(sample.names) >= LEAST_SPREAD else "pca"
        points = laid_out(sample.unit, layout, self.seed)
        picture, placed = draw_map(points, sample.thumbs)
        told = "t-SNE: which photos lie side by side counts, distances between groups and their sizes do not"
        how = told if layout == "tsne" else "the first two principal components"
        caption = (
            f"{self.drawn(shown.dataset, len(sample.names))} {placed:,} as thumbnails, as far as they find room; the "
            f"others are dots. Laid out by {how}."
        )
        lead = "Photos that lie together have like features: groups of one kind show what the encoder tells apart."
        places = ((name, f"{x:.4f}", f"{y:.4f}") for name, (x, y) in zip(sample.names, points, strict=True))
        rows = (Row("", "", picture[None]),)
        return PictureRows(("map of the photos",), rows, caption, lead, table=(("image", "x", "y"), *places))


def laid_out(unit: Float[np.ndarray, "n D"], layout: str, seed: int) -> Float[np.ndarray, "n 2"]:
    """A place for each vector, in [0, 1] from left to right and from top to bottom."""
    if layout == "tsne":
        from sklearn.manifold import TSNE  # takes seconds, so only where it is needed

        spread = TSNE(perplexity=min(30.0, (len(unit) - 1) / 3), init="pca", random_state=seed, n_jobs=1)
        points = spread.fit_transform(unit.astype(np.float32)).astype(np.float64)
    else:
        from sklearn.decomposition import PCA

        points = PCA(2, svd_solver="full").fit_transform(unit)
    span = np.ptp(points, axis=0)
    return (points - points.min(axis=0)) / np.where(span > 0, span, 1.0)


def draw_map(
    points: Float[np.ndarray, "n 2"], thumbs: UInt8[np.ndarray, "n h w C"]
) -> tuple[UInt8[np.ndarray, "H W 4"], int]:
    """The map, transparent between the thumbnails, and how many there are; smaller ones where there are many."""
    side = int(np.sqrt(WIDTH * HEIGHT / len(points)).clip(64, max(thumbs.shape[1:3])))
    small = shrunk(torch.from_numpy(thumbs).movedim(3, 1).float(), side).round().byte().movedim(1, 3).numpy()
    height, width = small.shape[1:3]
    room = min(1.0, float(np.sqrt(ROOM * small[..., 0].size / (WIDTH * HEIGHT))))  # few need less
    down, across = max(round(room * HEIGHT), 2 * height), max(round(room * WIDTH), 2 * width)
    corners = (points * (across - width, down - height)).round().astype(np.int64)
    canvas = np.zeros((down, across, 4), dtype=np.uint8)
    for x, y in corners + np.array([width // 2, height // 2]):
        canvas[max(y - DOT, 0) : y + DOT, max(x - DOT, 0) : x + DOT] = (128, 128, 128, 255)
    placed: list[int] = []
    for number, (x, y) in enumerate(corners):  # of two that are drawn, no more than a quarter of a side is covered
        if not placed or (np.abs(corners[placed] - (x, y)) >= 0.75 * np.array([width, height])).any(axis=1).all():
            placed.append(number)
            canvas[y : y + height, x : x + width] = np.insert(small[number].repeat(3 // small.shape[3], 2), 3, 255, 2)
    return canvas, len(placed)
