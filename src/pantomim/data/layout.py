"""What the folders of a source mean: which are splits, which are classes; the rules are in `docs/data.md`."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

SPLITS = ("train", "val", "test")
_CANONICAL = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
_CANONICAL |= {"test": "test", "testing": "test"}

Parts = tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """Positions of the images of each split (empty if there are none), class names, class ids (-1 for none)."""

    splits: dict[str, np.ndarray]
    classes: tuple[str, ...] | None
    labels: np.ndarray | None
    num_outside: int = 0


def canonical_split(name: str) -> str | None:
    """train, val or test for a folder or array value of that meaning, else None."""
    return _CANONICAL.get(name.lower())


def read_layout(names: Sequence[str], spec: str) -> Layout:
    """Find splits and classes in slash-separated names relative to the source."""
    paths = [tuple(name.split("/")) for name in names]
    depth = _wrapper_depth(paths)
    splits = _splits_at(paths, range(len(paths)), depth)
    if not splits and (below := _splits_one_level_down(paths, depth, spec)):
        splits, depth = below, depth + 1
    parts = splits or {"": list(range(len(paths)))}
    depth += bool(splits)
    classes, labels = _classes(paths, parts, depth, spec)
    num_outside = len(paths) - sum(map(len, parts.values()))
    return Layout({s: np.asarray(splits[s]) for s in SPLITS if s in splits}, classes, labels, num_outside)


def _wrapper_depth(paths: list[Parts]) -> int:
    depth = 0
    while True:
        first = paths[0][depth] if len(paths[0]) > depth + 1 else None
        if first is None or canonical_split(first) or any(p[depth] != first or len(p) < depth + 2 for p in paths):
            return depth
        depth += 1


def _splits_at(paths: list[Parts], rows: Sequence[int], depth: int) -> dict[str, list[int]]:
    found: dict[str | None, list[int]] = {}
    for row in rows:
        split = canonical_split(paths[row][depth]) if len(paths[row]) > depth + 1 else None
        found.setdefault(split, []).append(row)
    others = found.pop(None, None)
    beside = "train" in found and len(found) > 1
    return {split: of_split for split, of_split in found.items() if split} if beside or not others else {}


def _splits_one_level_down(paths: list[Parts], depth: int, spec: str) -> dict[str, list[int]]:
    parents: dict[str, list[int]] = {}
    for row, path in enumerate(paths):
        if len(path) > depth + 2:
            parents.setdefault(path[depth], []).append(row)
    holding = {parent: found for parent, rows in parents.items() if (found := _splits_at(paths, rows, depth + 1))}
    if len(holding) > 1:
        folders = ", ".join(sorted(holding)[:10])
        raise ValueError(
            f"Source.spec must hold splits in one folder; got {spec} with splits in {folders}. "
            f"Name the one that holds the images, such as {spec}/{min(holding)}."
        )
    return next(iter(holding.values()), {})


def _classes(
    paths: list[Parts], parts: dict[str, list[int]], depth: int, spec: str
) -> tuple[tuple[str, ...] | None, np.ndarray | None]:
    """Class names by the folders of train, and class ids; a part with images elsewhere has none."""
    every_row = [row for rows in parts.values() for row in rows]
    train = [paths[row] for row in parts.get("train") or every_row]
    folders = {path[depth] for path in train if len(path) == depth + 2}
    if len(folders) < 2 or any(len(path) != depth + 2 for path in train):
        return None, None
    classes = tuple(sorted(folders))
    ids = {name: number for number, name in enumerate(classes)}
    labels = np.full(len(paths), -1, dtype=np.int64)
    for rows in parts.values():
        if all(len(paths[row]) == depth + 2 for row in rows):
            if unknown := sorted({paths[row][depth] for row in rows} - folders):
                raise ValueError(
                    f"Source.classes must be those of train; got {', '.join(unknown[:10])} in {spec}, unknown to "
                    f"train. Rename or remove these folders."
                )
            labels[rows] = [ids[paths[row][depth]] for row in rows]
    return classes, labels


def part_names(own: Collection[str]) -> dict[str, str]:
    """Which of the source's own splits is which part: "train", "test", and "val" if it is a third one.

    Test is the source's test split; without one, its val split; without any splits, the fixed fifth that pre-training
    does not see either.
    """
    names = {"train": "train", "test": "val" if "val" in own and "test" not in own else "test"}
    return names | {"val": "val"} if {"val", "test"} <= set(own) else names


def divide(num_images: int, labels: np.ndarray | None, *, seed: int, share: float = 0.2) -> dict[str, np.ndarray]:
    """A fixed division into train and test for a source without splits, stratified by class where there are classes.

    The test part has this share of every class, and at least one image of each class of two or more.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, 8020]))
    groups = [np.arange(num_images)] if labels is None else [np.flatnonzero(labels == c) for c in np.unique(labels)]
    test = []
    for rows in groups:
        count = max(round(len(rows) * share), 1) if len(rows) > 1 else 0
        test.append(rng.permutation(rows)[:count])
    is_test = np.zeros(num_images, dtype=bool)
    is_test[np.concatenate(test)] = True
    return {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}


def draw_images(num_images: int, labels: np.ndarray | None, count: int, *, seed: int) -> np.ndarray:
    """The indices of `count` images drawn by the seed, as even over the classes as these allow, in rising order.

    A smaller draw is part of a larger one of the same seed.
    """
    if not 1 <= count <= num_images:
        raise ValueError(
            f"images must be at least 1 and at most the number of training images, {num_images}; got {count}. "
            f"Leave it out to use all."
        )
    order = np.random.default_rng(np.random.SeedSequence([seed, 5])).permutation(num_images)
    groups = np.zeros(num_images, dtype=np.int64) if labels is None else labels[order]
    turn = np.empty(num_images, dtype=np.int64)
    for group in np.unique(groups):
        turn[groups == group] = np.arange((groups == group).sum())
    return np.sort(order[np.argsort(turn, kind="stable")[:count]])
