"""Photos that are nearly the same to an encoder, and photos that are unlike all others."""

from typing import ClassVar

import numpy as np

from pantomim.analysis.neighbours import ALIKE, most_alike
from pantomim.analysis.pictures import PictureRows, Row
from pantomim.analysis.views import SAMPLE, EncoderPictures, Shown
from pantomim.core.frozen import frozen
from pantomim.core.ranges import NotNegative, ShareBelowOne

NUM_SHOWN = 12  # of each
K = 5  # outliers are far from their K-th neighbour
COLUMNS = 8
EXACT = 1e-6  # of a distance: what rounding leaves of a copy


@frozen
class Duplicates(EncoderPictures):
    """Near duplicates and outliers, with their names: FILE.csv lists them all."""

    name: ClassVar[str] = "duplicates"
    title: ClassVar[str] = "Near duplicates and outliers"
    least: ClassVar[int] = 3
    usual: ClassVar[int] = SAMPLE
    # Near duplicates: their distance is at most this share of the median distance to the nearest neighbour
    near: ShareBelowOne = 0.1
    # An outlier: the distance to its 5th neighbour is above the upper quartile by this many times that of the quartiles
    far: NotNegative = 1.5

    def look(self, shown: Shown) -> PictureRows:
        """A row of pairs, the closest first, and one of outliers, the farthest first."""
        sample = shown.sample(self.count, self.seed)
        names, thumbs = sample.names, sample.thumbs
        similarity, nearest = most_alike(sample.unit, K)
        distance = 1.0 - similarity
        median = float(np.median(distance[:, 0]))
        close = max(self.near * median, EXACT)
        found = np.argwhere(distance <= close)
        pairs = {tuple(sorted((image, nearest[image, rank]))): distance[image, rank] for image, rank in found}
        closest = sorted(pairs, key=lambda pair: (pairs[pair], pair))
        lower, upper = np.percentile(distance[:, -1], (25, 75))
        distant = upper + self.far * (upper - lower)
        farthest = np.argsort(-distance[:, -1], kind="stable")[: (distance[:, -1] > distant).sum()]
        gap = np.full((thumbs.shape[1], 4, thumbs.shape[3]), 255, dtype=np.uint8)
        rows = []
        if closest:
            joined = [np.concatenate([thumbs[one], gap, thumbs[two]], axis=1) for one, two in closest[:NUM_SHOWN]]
            told = [f"{1 - pairs[pair]:.4f} · {names[pair[0]]} · {names[pair[1]]}" for pair in closest[:NUM_SHOWN]]
            rows.append(Row("Near duplicates", f"{len(joined)} of {len(closest)}", np.stack(joined), tuple(told)))
        if len(few := farthest[:NUM_SHOWN]):
            told = [f"{similarity[image, -1]:.2f} · {names[image]}" for image in few]
            rows.append(Row("Outliers", f"{len(few)} of {len(farthest)}", thumbs[few], tuple(told)))
        lead = (
            f"Pairs that this encoder finds nearly the same: {len(closest)}. Photos unlike all others: {len(farthest)}."
        )
        caption = (
            f"{self.drawn(shown.dataset, len(names))} Similarity: {ALIKE}; distance is 1 minus it. Near duplicates: a "
            f"distance of at most {close:.2g}, {self.near:g} of the median to the nearest neighbour ({median:.2g}). "
            f"Outliers: a distance of more than {distant:.2g} to neighbour {distance.shape[1]}, whose similarity is "
            f"given: above the upper quartile by {self.far:g} times the distance between the quartiles. Both are rules "
            f"of thumb about this encoder's features among these images, no proof: look before you remove a file."
        )
        table = [
            ("kind", "image", "other", "distance"),
            *(("near duplicate", names[one], names[two], f"{pairs[one, two]:.6f}") for one, two in closest),
            *(("outlier", names[image], "", f"{distance[image, -1]:.6f}") for image in farthest),
        ]
        return PictureRows((), tuple(rows), caption, lead, table=tuple(table), columns=COLUMNS)
