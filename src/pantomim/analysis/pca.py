"""Patch features as colours: their first three principal components over all shown images."""

from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from pantomim.analysis.pictures import PictureRows, Row, cells
from pantomim.analysis.views import EncoderPictures, Shown
from pantomim.core.frozen import frozen

COLOURED = (2.0, 98.0)  # percentiles of a component that become no and full colour
TINY = np.finfo(np.float64).tiny
ENOUGH, MOST_BETWEEN = 0.05, 0.5  # a foreground: of the patches at least, of the variation between photos at most


@frozen
class PatchColours(EncoderPictures):
    """The first three principal components of the patch features as red, green and blue."""

    name: ClassVar[str] = "pca"
    title: ClassVar[str] = "Patch features as colours"

    def look(self, shown: Shown) -> PictureRows:
        """A row a photo: the photo, the colours of all patches, those without their place, and the foreground's."""
        grid = shown.encoder.grid
        images, names, pictures = shown.photos(self.count or self.usual, self.seed)
        with torch.inference_mode():
            patches = torch.cat([shown.encoder(image).patches for image in images.split(1)]).double().numpy()
        components, share = principal(patches)
        placeless = principal(patches - patches.mean(axis=0))[0]  # all zero for one image
        painted = [coloured(each) for each in (components, placeless)]
        front = foreground(components[..., 0].reshape(-1, *grid)).reshape(components.shape[:2])
        first = components[..., 0]
        between = first.mean(axis=1).var() / max(first.var(), TINY)  # 1: the cut tells photos apart, not patches
        if alone := ENOUGH < front.mean() < 1 - ENOUGH and between < MOST_BETWEEN:
            painted.append(np.zeros_like(painted[0]))
            painted[-1][front] = coloured(principal(patches[front])[0])
        photos = np.insert(pictures.repeat(3 // pictures.shape[3], axis=3), 3, 255, axis=3)
        fields = [cells(each.reshape(-1, *grid, 4), pictures.shape[1:3]) for each in painted]
        items = ("photo", "all patches", "without place", "foreground")[: 1 + len(fields)]
        rows = [Row(name, "", np.stack(row), items) for name, *row in zip(names, photos, *fields, strict=True)]
        told = (
            "Foreground: the side of the mean of the first component that has fewer patches at the borders of the "
            "photos, its components computed again; a rule of thumb."
        )
        caption = (
            f"{self.drawn(shown.dataset, len(names))} Features after the final norm; components over all patches of "
            f"all these images, each scaled to its {COLOURED[0]:g} to {COLOURED[1]:g} % range. Without place: the mean "
            f"over the photos at each place is subtracted first. "
            f"{told if alone else 'No foreground could be told apart.'}"
        )
        fixed = components.mean(axis=0).var(axis=0).sum() / max(components.var(axis=(0, 1)).sum(), TINY)
        lead = (
            f"Patches of like colour have like features: {100 * share:.0f} % of their variation lies in the three "
            f"components shown, and {100 * fixed:.0f} % of that is alike at the same place of every photo: it tells "
            f"where a patch lies rather than what it shows (by chance {100 / len(names):.0f} %)."
        )
        return PictureRows(items, tuple(rows), caption, lead)


def principal(features: Float[np.ndarray, "*n D"]) -> tuple[Float[np.ndarray, "*n 3"], float]:
    """The first three principal components (0 where missing), signs as scikit-learn's, and their share of variance."""
    flat = features.reshape(-1, features.shape[-1])
    from sklearn.decomposition import PCA  # takes a second, so only where it is needed

    fitted = PCA(min(3, *flat.shape), svd_solver="full" if len(flat) < 1_000 else "covariance_eigh")
    with np.errstate(invalid="ignore"):  # shares of no variance at all
        values = fitted.fit_transform(flat)
    values = np.pad(values, ((0, 0), (0, 3 - values.shape[1])))
    return values.reshape(*features.shape[:-1], 3), float(np.nan_to_num(fitted.explained_variance_ratio_).sum())


def coloured(components: Float[np.ndarray, "*n 3"]) -> UInt8[np.ndarray, "*n 4"]:
    """Components as red, green and blue, each by robust ends of its range; opaque."""
    low, high = np.percentile(components.reshape(-1, 3), COLOURED, axis=0)
    shares = ((components - low) / np.where(high > low, high - low, 1.0)).clip(0.0, 1.0)
    return np.insert((shares * 255.0).astype(np.uint8), 3, 255, axis=-1)


def foreground(first: Float[np.ndarray, "B rows cols"]) -> Bool[np.ndarray, "B rows cols"]:
    """The side of the mean of the first component that has less of the photos' borders."""
    above = first > 0
    border = np.concatenate([above[:, [0, -1]].ravel(), above[:, 1:-1, [0, -1]].ravel()])
    return ~above if border.mean() > above.mean() else above
