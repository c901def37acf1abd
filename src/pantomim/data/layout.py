"""What the folders of a source mean: which are splits, which are classes; the rules are in `docs/data.md`."""

from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pantomim.data.names import LOG, SPLITS, UNLABELLED, is_no_label, name_splits, sort_classes

Parts = tuple[str, ...]
Rows = dict[str, list[int]]


@dataclass(frozen=True)
class Layout:
    """Which of the names are images of the source, in order, and by positions among these: splits and class ids."""

    rows: np.ndarray
    splits: dict[str, np.ndarray]  # empty if there are none
    classes: tuple[str, ...] | None
    labels: np.ndarray | None  # -1 for none
    problem: str  # why the labels cannot be used, although some are there
    left_out: Counter[str]


def read_layout(
    names: Sequence[str],
    spec: str,
    columns: Mapping[str, Sequence[str]] | None = None,
    *,
    classes: tuple[str, ...] | None = None,
    same: Mapping[int, tuple[bool, Hashable]] | None = None,
) -> Layout:
    """Find splits and classes in names, slash-separated, relative to the source, in one form (`names.readable`).

    Splits, labels and the classes of these are taken as they are where they are given. `same` has what a name leads to,
    and whether it is a link, of names that lead to the same file as others: one of them is an image.
    """
    splits, labels = (columns or {}).get("splits"), (columns or {}).get("labels")
    paths = [tuple(name.split("/")) for name in names]
    depth = _wrapper_depth(paths, range(len(paths)))
    parts = _written_splits(splits, spec) if splits is not None else _splits_at(paths, range(len(paths)), depth)
    if not parts and (below := _splits_one_level_down(paths, depth, spec)):
        parts, depth = below, depth + 1
    if not parts:
        _warn_of_folders_like_splits(paths, depth, spec)
        parts = {"": list(range(len(paths)))}
    left_out = Counter({"outside the splits": len(paths) - sum(map(len, parts.values()))})
    if same:
        parts, left_out["links to images that are read already"] = _once_each(parts, names, same)
    inside = depth + (splits is None and "" not in parts)
    texts = list(labels) if labels is not None else _class_folders(paths, parts, inside)
    bare = parts.pop(UNLABELLED, [])
    for row in bare:
        texts[row] = ""
    train = parts.get("train") or [row for rows in parts.values() for row in rows]
    folders = labels is None
    classes = classes or sort_classes((texts[row] for row in train), folders)
    ids = {name: number for number, name in enumerate(classes)}
    parts["train"] = parts.get("train", []) + bare
    rows = np.sort(np.concatenate([np.asarray(of_part, dtype=np.int64) for of_part in parts.values()]))
    splits_of_rows = {split: np.searchsorted(rows, np.sort(parts[split])) for split in SPLITS if parts.get(split)}
    if not classes:
        return Layout(rows, splits_of_rows, None, None, "", +left_out)
    unknown = sorted(text for text in {texts[row] for row in rows} - ids.keys() if not is_no_label(text, folders))
    problem = (
        f"Source.classes must be those of train; got {', '.join(unknown[:10])} in {spec}, unknown to train. Rename or "
        f"remove them."
    )
    numbers = np.asarray([ids.get(texts[row], -1) for row in rows])
    return Layout(rows, splits_of_rows, classes, numbers, problem if unknown else "", +left_out)


def _written_splits(values: Sequence[str], spec: str) -> Rows:
    named = name_splits(set(values))
    if unknown := sorted(set(values) - named.keys()):
        raise ValueError(
            f"Source.split must hold train, val and test; got {', '.join(unknown[:5])} in {spec}. Rename them."
        )
    found: Rows = {}
    for row, value in enumerate(values):
        found.setdefault(named[value], []).append(row)
    return found


def _wrapper_depth(paths: list[Parts], rows: Sequence[int], depth: int = 0, kept: Collection[str] | None = None) -> int:
    """How many folders merely wrap all of these; none of `kept`, nor the last but one where that is given."""
    below = 2 if kept is None else 3
    while rows:
        first = paths[rows[0]][depth] if len(paths[rows[0]]) >= depth + below else None
        stops = first is None or (name_splits([first]) if kept is None else first in kept)
        if stops or any(paths[row][depth] != first or len(paths[row]) < depth + below for row in rows):
            break
        depth += 1
    return depth


def _folders_at(paths: list[Parts], rows: Sequence[int], depth: int) -> Rows:
    """Rows by the folder in which they lie at this depth; those without a folder there by an empty name."""
    found: Rows = {}
    for row in rows:
        found.setdefault(paths[row][depth] if len(paths[row]) > depth + 1 else "", []).append(row)
    return found


def _splits_at(paths: list[Parts], rows: Sequence[int], depth: int) -> Rows:
    """Rows by split, where train is beside val or test, or alone; by a word in a name beside at most as many others."""
    folders = _folders_at(paths, rows, depth)
    named = name_splits(folders)
    if len(folders.keys() - named.keys() - {""}) > len(named):
        named = {name: split for name, split in named.items() if name_splits([name])}
    beside = "train" in named.values() and not {"val", "test"}.isdisjoint(named.values())
    if not beside and folders.keys() - named.keys():
        return {}
    found: Rows = {}
    for name, split in named.items():
        found.setdefault(split, []).extend(folders[name])
        if not name_splits([name]):
            LOG.info("The folder %s is read as %s.", name, "images without labels" if split == UNLABELLED else split)
    return found


def _splits_one_level_down(paths: list[Parts], depth: int, spec: str) -> Rows:
    deep = [row for row, path in enumerate(paths) if len(path) > depth + 2]
    parents = _folders_at(paths, deep, depth)
    holding = {parent: found for parent, rows in parents.items() if (found := _splits_at(paths, rows, depth + 1))}
    if len(holding) > 1:
        folders = ", ".join(sorted(holding)[:10])
        raise ValueError(
            f"Source.spec must hold splits in one folder; got {spec} with splits in {folders}. "
            f"Name the one that holds the images, such as {spec}/{min(holding)}."
        )
    return next(iter(holding.values()), {})


def _warn_of_folders_like_splits(paths: list[Parts], depth: int, spec: str) -> None:
    folders = _folders_at(paths, range(len(paths)), depth)
    if like := sorted(name_splits(folders)):
        others = sorted(folders.keys() - set(like) - {""}) or ["images"]
        LOG.warning(
            "%s of %s is named like a split and is not read as one, as %s lies beside it. Have nothing beside train, "
            "val and test.",
            *(", ".join(like[:5]), spec, ", ".join(others[:5])),
        )


def _once_each(parts: Rows, names: Sequence[str], same: Mapping[int, tuple[bool, Hashable]]) -> tuple[Rows, int]:
    """Without the rows that lead to an image that another one of these parts is or leads to; and how many."""
    owners: dict[Hashable, int] = {}
    mine = [row for rows in parts.values() for row in rows if row in same]
    for row in sorted(mine, key=lambda row: (same[row][0], names[row])):
        owners.setdefault(same[row][1], row)
    again = set(mine) - set(owners.values())
    return {part: [row for row in rows if row not in again] for part, rows in parts.items()}, len(again)


def _class_folders(paths: list[Parts], parts: Rows, depth: int) -> list[str]:
    """Each image's class folder, or ""; there are classes where most of train lie one folder deep, in two or more."""
    folders = [""] * len(paths)
    known: set[str] = set()
    for _, rows in sorted(parts.items(), key=lambda part: part[0] != "train"):
        root = _wrapper_depth(paths, rows, depth, known)
        for row in rows:
            folders[row] = paths[row][root] if len(paths[row]) == root + 2 else ""
        known = known or {folders[row] for row in rows}
    train = [folders[row] for row in parts.get("train") or [row for rows in parts.values() for row in rows]]
    several = len(sort_classes(train, folders=True)) > 1
    return folders if several and 2 * train.count("") < len(train) else [""] * len(paths)


def part_names(own: Collection[str]) -> dict[str, str]:
    """Which of the source's own splits is "train", "test" (else its val, else the fixed fifth) and perhaps "val"."""
    names = {"train": "train", "test": "val" if "val" in own and "test" not in own else "test"}
    return names | {"val": "val"} if {"val", "test"} <= set(own) else names


def divide(num_images: int, labels: np.ndarray | None, *, seed: int, share: float = 0.2) -> dict[str, np.ndarray]:
    """A fixed division into train and test for a source without splits, stratified by class where there are classes.

    The test part has this share of every class, and at least one image of each class of two or more, but none without a
    label beside labelled ones.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, 8020]))
    groups = [np.arange(num_images)] if labels is None else [np.flatnonzero(labels == c) for c in np.unique(labels)]
    test = []
    for rows in groups:
        unlabelled = labels is not None and labels[rows[0]] < 0
        count = max(round(len(rows) * share), 1) if len(rows) > 1 and share and not unlabelled else 0
        test.append(rng.permutation(rows)[:count])
    is_test = np.zeros(num_images, dtype=bool)
    is_test[np.concatenate(test)] = True
    return {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}


def draw_images(num_images: int, labels: np.ndarray | None, count: int, *, seed: int) -> np.ndarray:
    """Indices of `count` images by a seed, even over the classes, rising; a smaller draw is part of a larger one."""
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
