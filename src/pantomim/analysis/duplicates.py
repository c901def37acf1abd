"""Photos that are nearly the same to an encoder, and photos that are unlike all others."""

from typing import ClassVar

import numpy as np
from jaxtyping import Float

from pantomim.analysis.neighbours import ALIKE, most_alike
from pantomim.analysis.pictures import PictureRows, Row
from pantomim.analysis.views import SAMPLE, EncoderPictures, Shown
from pantomim.core.frozen import frozen
from pantomim.core.ranges import NotNegative, ShareBelowOne

NUM_SHOWN = 12  # of each
K = 5  # outliers are far from their K-th neighbour
COLUMNS = 8
EXACT = 1e-6  # of a distance: what rounding leaves of a copy
LISTED = 1_000_000  # pairs: more are counted, and the closest listed


@frozen
class Duplicates(EncoderPictures):
    """Near duplicates and outliers, with their names: FILE.csv lists them."""

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
        similarity, _ = most_alike(sample.unit, K)
        distance = 1.0 - similarity
        median = float(np.median(distance[:, 0]))
        close = max(self.near * median, EXACT)
        closest, count = near_pairs(sample.unit, distance[:, 0], close)
        lower, upper = np.percentile(distance[:, -1], (25, 75))
        distant = upper + self.far * (upper - lower)
        farthest = np.argsort(-distance[:, -1], kind="stable")[: (distance[:, -1] > distant).sum()]
        gap = np.full((thumbs.shape[1], 4, thumbs.shape[3]), 255, dtype=np.uint8)
        rows = []
        if closest:
            joined = [np.concatenate([thumbs[one], gap, thumbs[two]], axis=1) for _, one, two in closest[:NUM_SHOWN]]
            told = [f"{1 - apart:.4f} · {names[one]} · {names[two]}" for apart, one, two in closest[:NUM_SHOWN]]
            rows.append(Row("Near duplicates", f"{len(joined)} of {count}", np.stack(joined), tuple(told)))
        if len(few := farthest[:NUM_SHOWN]):
            told = [f"{similarity[image, -1]:.2f} · {names[image]}" for image in few]
            rows.append(Row("Outliers", f"{len(few)} of {len(farthest)}", thumbs[few], tuple(told)))
        lead = f"Pairs that this encoder finds nearly the same: {count}. Photos unlike all others: {len(farthest)}."
        caption = (
            f"{self.drawn(shown.dataset, len(names))} Similarity: {ALIKE}; distance is 1 minus it. Near duplicates: a "
            f"distance of at most {close:.2g}, {self.near:g} of the median to the nearest neighbour ({median:.2g}). "
            f"Outliers: a distance of more than {distant:.2g} to neighbour {distance.shape[1]}, whose similarity is "
            f"given: above the upper quartile by {self.far:g} times the distance between the quartiles. Both are rules "
            f"of thumb about this encoder's features among these images, no proof: look before you remove a file."
            f"{f' Of the pairs the {LISTED:,} closest are listed.' if count > LISTED else ''}"
        )
        table = [
            ("kind", "image", "other", "distance"),
            *(("near duplicate", names[one], names[two], f"{apart:.6f}") for apart, one, two in closest),
            *(("outlier", names[image], "", f"{distance[image, -1]:.6f}") for image in farthest),
        ]
        return PictureRows((), tuple(rows), caption, lead, table=tuple(table), columns=COLUMNS)


def near_pairs(
    unit: Float[np.ndarray, "n D"], nearest: Float[np.ndarray, " n"], close: float
) -> tuple[list[tuple[float, int, int]], int]:
    """Pairs of vectors at a distance of at most `close` and their distances, the closest first, and how many there are.

    `nearest` is the distance of each vector to its nearest: the others are not searched.
    """
    candidates = np.flatnonzero(nearest <= close)
    if not candidates.size:
        return [], 0
    from scipy.sparse import triu  # these take a second, so only where they are needed
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(radius=close, algorithm="brute", metric="cosine").fit(unit[candidates])
    found = triu(search.radius_neighbors_graph(mode="distance"), 1)  # each pair once
    order = np.lexsort((found.col, found.row, found.data))[:LISTED]
    columns = (found.data, candidates[found.row], candidates[found.col])
    return list(zip(*(column[order].tolist() for column in columns), strict=True)), found.nnz
