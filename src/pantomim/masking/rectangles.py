"""Random rectangles until enough patches are covered: the sampler behind block masks, for a whole batch at once.

It is a rejection loop and runs on the CPU. An image is a row of bits, 64 patches a word, and so is a rectangle. A pass
of the loop makes proposals for every unfinished image: the fewer are left, the more proposals ahead each of them gets.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

Ids = Int[np.ndarray, " P"]
Reals = Float[np.ndarray, " P"]

TRIES = 10  # proposals for one rectangle before the authors' code gives up
PROPOSALS = 768  # in one pass cost little more than a single one


@runtime_checkable
class Source(Protocol):
    """Where the sampler's random values come from: one for each proposal; `images` says which image it is made for."""

    def uniform(self, images: Ids, low: float, high: Reals | float) -> Reals:
        """Reals between `low` and `high`, which may be the smaller one."""

    def integers(self, images: Ids, high: Reals) -> Reals:
        """Whole numbers from 0 to `high`, both included."""


@dataclass(frozen=True)
class FromGenerator:
    """The ordinary source: everything from one generator, whichever image asks."""

    generator: np.random.Generator

    def uniform(self, images: Ids, low: float, high: Reals | float) -> Reals:
        """See `Source.uniform`."""
        return low + (high - low) * self.generator.random(len(images))

    def integers(self, images: Ids, high: Reals) -> Reals:
        """See `Source.integers`."""
        return np.floor(self.generator.random(len(images)) * (high + 1))


@dataclass(frozen=True)
class Limits:
    """What makes a rectangle acceptable, and when an image is finished."""

    total: int  # patches to cover
    min_area: int  # smallest area that is proposed, in patches
    max_area: int  # most patches that one rectangle may newly cover
    log_aspect: float  # height over width lies within exp(-log_aspect) and exp(log_aspect)
    patience: int  # so many proposals in a row without success end an image


@dataclass(frozen=True)
class Covered:
    """A batch of images with rectangles on them."""

    masked: Bool[np.ndarray, "B N"]  # true where a rectangle lies
    num_rectangles: Int[np.ndarray, " B"]  # how many were accepted
    first: Int[np.ndarray, " B"]  # patches of the first one


def cover(batch_size: int, grid: tuple[int, int], rule: Limits, source: Source, ahead: int | None = None) -> Covered:
    """Draw rectangles on every image until `rule.total` patches are covered or patience ends.

    A proposal depends only on what was accepted before it; so several (`ahead`; None: the fewer images are unfinished,
    the more) can be made for one image, of which the first acceptable one counts. The rest count as never drawn. For
    each, `source` is asked for area, logarithm of the aspect and, if the rectangle is smaller than the grid in both
    directions, top and left.
    """
    num_rows, num_columns = grid
    above, before = _prefixes(grid)
    covered = np.zeros((batch_size, above.shape[1]), above.dtype)
    count, first = np.zeros((2, batch_size))
    failures, num_rectangles = np.zeros((2, batch_size), np.int64)
    unfinished = np.arange(batch_size)
    while unfinished.size:
        each = ahead or math.ceil(PROPOSALS / unfinished.size)
        images = unfinished.repeat(each)
        cap = np.minimum(rule.total - count, rule.max_area)[images]
        area = source.uniform(images, float(rule.min_area), cap)  # towards the end, `cap` is smaller
        aspect = np.exp(source.uniform(images, -rule.log_aspect, rule.log_aspect))
        height = np.rint(np.sqrt(area * aspect))
        width = np.rint(np.sqrt(area / aspect))

        fitting = ((height < num_rows) & (width < num_columns)).nonzero()[0]
        images, cap, height, width = images[fitting], cap[fitting], height[fitting], width[fitting]
        top = source.integers(images, num_rows - height)
        left = source.integers(images, num_columns - width)
        rectangle = _between(above, top, height) & _between(before, left, width)
        new = height * width - _num_bits(rectangle & covered.take(images, axis=0))

        accepted = ((new > 0) & (new <= cap)).nonzero()[0]
        accepted = accepted[failures[images[accepted]] + fitting[accepted] % each < rule.patience]
        accepted = accepted[_earliest(images[accepted])]
        images = images[accepted]
        failures[unfinished] += each
        failures[images] = 0
        covered[images] = covered.take(images, axis=0) | rectangle[accepted]
        count[images] += new[accepted]
        first[images] = np.where(num_rectangles[images] == 0, count[images], first[images])
        num_rectangles[images] += 1
        unfinished = unfinished[((count < rule.total) & (failures < rule.patience))[unfinished]]
    return Covered(_unpack(covered, num_rows * num_columns), num_rectangles, first.astype(np.int64))


def fill(masked: Bool[np.ndarray, "B N"], total: int, generator: np.random.Generator) -> Bool[np.ndarray, "B N"]:
    """Cover further patches, uniformly at random, in images that have fewer than `total`; the others stay."""
    short = np.flatnonzero(masked.sum(axis=1) < total)
    if not short.size:
        return masked
    scores = generator.random((short.size, masked.shape[1])) - masked[short]  # covered patches come first
    filled = masked.copy()
    filled[short[:, None], scores.argsort(axis=1)[:, :total]] = True
    return filled


@lru_cache(maxsize=32)
def _prefixes(grid: tuple[int, int]) -> tuple[UInt64[np.ndarray, "rows W"], UInt64[np.ndarray, "columns W"]]:
    """The patches above each row boundary and before each column boundary, as bits."""
    row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    boundaries = np.arange(max(grid) + 1)[:, None]
    return _pack(row < boundaries[: grid[0] + 1]), _pack(column < boundaries[: grid[1] + 1])


def _between(prefixes: UInt64[np.ndarray, "boundaries W"], start: Reals, length: Reals) -> UInt64[np.ndarray, "P W"]:
    """The patches from one boundary to another, as bits."""
    end = (start + length).astype(np.int64)
    return prefixes.take(end, axis=0) ^ prefixes.take(start.astype(np.int64), axis=0)


def _num_bits(words: UInt64[np.ndarray, "P W"]) -> Reals:
    ones = np.ones(words.shape[1], np.float32)
    return np.bitwise_count(words).astype(np.float32) @ ones  # exact, and far quicker than a sum over a short axis


def _earliest(images: Ids) -> Bool[np.ndarray, " P"]:
    """Which ones come first for their image; those for one image stand side by side."""
    earliest = np.ones(len(images), np.bool_)
    np.not_equal(images[1:], images[:-1], out=earliest[1:])
    return earliest


def _pack(bits: Bool[np.ndarray, "A N"]) -> UInt64[np.ndarray, "A W"]:
    padded = np.pad(bits, ((0, 0), (0, -bits.shape[1] % 64)))
    return np.packbits(padded, axis=1, bitorder="little").view("<u8")


def _unpack(words: UInt64[np.ndarray, "A W"], num_patches: int) -> Bool[np.ndarray, "A N"]:
    return np.unpackbits(words.view(np.uint8), axis=1, count=num_patches, bitorder="little").view(np.bool_)
