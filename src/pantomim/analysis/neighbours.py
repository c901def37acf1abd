"""The photos that an encoder finds most alike."""

from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from pantomim.analysis.pictures import PictureRows, Row
from pantomim.analysis.runs import NUM_PHOTOS, choose
from pantomim.analysis.views import SAMPLE, EncoderPictures, Shown
from pantomim.core.frozen import frozen
from pantomim.core.ranges import AtLeastOne

ALIKE = "cosine of the mean patch features, from which their mean over all these images is taken"


@frozen
class Neighbours(EncoderPictures):
    """The nearest neighbours of twelve photos."""

    name: ClassVar[str] = "neighbours"
    title: ClassVar[str] = "Nearest neighbours"
    least: ClassVar[int] = 3
    usual: ClassVar[int] = SAMPLE
    neighbours: AtLeastOne = 5  # Of each photo

    def look(self, shown: Shown) -> PictureRows:
        """A row a photo: the photo, and its neighbours."""
        sample, dataset = shown.sample(self.count, self.seed), shown.dataset
        similarity, nearest = most_alike(sample.unit, self.neighbours)
        rows = []
        for photo in np.flatnonzero(np.isin(sample.indices, choose(dataset, NUM_PHOTOS, self.seed))):
            named = [
                f"{alike:.2f} · {sample.names[k]}" for alike, k in zip(similarity[photo], nearest[photo], strict=True)
            ]
            rows.append(Row(sample.names[photo], "", sample.thumbs[[photo, *nearest[photo]]], ("photo", *named)))
        lead = (
            "Each line is a photo and those whose features are most like its own: do they show the same kind of thing?"
        )
        if dataset.labels is not None:
            labels = dataset.labels[sample.indices]
            pairs = np.stack([labels, labels[nearest[:, 0]]])[:, labels >= 0]
            chance = np.square(np.unique(pairs[0], return_counts=True)[1] / pairs.shape[1]).sum()
            lead = (
                f"The nearest neighbour is of the same class for {100 * np.mean(pairs[0] == pairs[1]):.0f} % of "
                f"{pairs.shape[1]:,} photos; by chance it would be for {100 * chance:.0f} %."
            )
        caption = (
            f"{self.drawn(dataset, len(sample.names))} {len(rows)} photos, their nearest among all of these. "
            f"Similarity: {ALIKE}; 1 is a copy, 0 what two photos have on average."
        )
        items = ("photo", *(f"neighbour {rank}" for rank in range(1, nearest.shape[1] + 1)))
        return PictureRows(items, tuple(rows), caption, lead)


def most_alike(unit: Float[np.ndarray, "n D"], count: int) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
    """Cosine similarity of each vector of length 1 with its nearest, itself left out, and which these are."""
    from sklearn.neighbors import NearestNeighbors  # takes a second, so only where it is needed

    search = NearestNeighbors(n_neighbors=min(count, len(unit) - 1), algorithm="brute", metric="cosine").fit(unit)
    distance, nearest = search.kneighbors()
    return 1.0 - distance, nearest
