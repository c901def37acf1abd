"""What a name means, whichever source it comes from; the rules are in `docs/data.md`."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import takewhile
from posixpath import splitext
from unicodedata import normalize

import numpy as np

from pantomim.core.files import OWN_FOLDER
from pantomim.data.decoding import EXTRAS, SUFFIXES

LOG = logging.getLogger(__name__)  # what a user should know of a source; the command line shows it

SPLITS = ("train", "val", "test")
UNLABELLED = "unlabelled"  # beside the splits: images that are trained on without labels

LABEL_TITLES = ("label", "labels", "class", "class_name", "category", "target", "cls")  # of a column with classes

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_WORDS = _SPLITS | {f"{word}set": split for word, split in _SPLITS.items()}
_WORDS |= {"trainval": "train", "tr": "train", "ts": "test", "eval": "val", "evaluation": "val"}
_UNLABELLED = frozenset({"unlabeled", "unlabelled", "unsupervised"})
_NO_LABEL = frozenset({"", "-1", "None", "nan"})
_SYSTEM = {
    *("__macosx", "__pycache__", "@eadir", "@__thumb", "@tmp", "@recycle", "@recently-snapshot", "#recycle"),
    *("#snapshot", "~snapshot", "$recycle.bin", "system volume information", "lost+found"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
}
_RUN = frozenset({"config.yaml", "environment.json"})  # in the folder of a run
_BYTES = re.compile("[\udc80-\udcff]")


def readable(name: str) -> str:
    """A name in one form: separators /, no empty parts, Unicode's NFC, and a byte that is no UTF-8 as %E9."""
    if name.isascii() and not any(odd in name for odd in ("\\", "//", "./")):
        return name
    name = re.sub(r"/(?:\.?/)+", "/", name.replace("\\", "/"))
    while name.startswith("./"):
        name = name[2:]
    return normalize("NFC", _BYTES.sub(lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", name))


def is_system(part: str) -> bool:
    """Whether a folder or file of this name belongs to a system or an editor, not to the images."""
    return part.lower() in _SYSTEM or (part.startswith(".") and part not in (".", ".."))


def sift(names: Sequence[str], *, listed: bool = False) -> tuple[list[int], Counter[str]]:
    """The rows of images among names in one form, sorted by these, and how many others there are, by reason.

    A name that ends in / is a folder; of two equal ones the last counts. Who `listed` names chose any ending and order.
    """
    pages = {name[: -len(".html")] for name in names if name.endswith(".html")}
    marks = {place[::2] for name in names if (place := name.rpartition("/"))[2] in (OWN_FOLDER, *_RUN) and place[0]}
    own = {
        folder for folder, _ in marks if (folder, OWN_FOLDER) in marks or all((folder, file) in marks for file in _RUN)
    }
    above: dict[str, str] = {}  # by folder: itself or the one above it that is left out
    kept: dict[str | int, int] = {}
    left_out: Counter[str] = Counter()
    for row, name in enumerate(names):
        folder, _, file = name.rpartition("/")
        left_out["without a name"] += not name
        if folder not in above:
            parts = folder.split("/")
            system = next((count for count, part in enumerate(parts, 1) if is_system(part)), 0)
            above[folder] = "/".join(parts[:system]) or next((o for o in own if f"{folder}/".startswith(f"{o}/")), "")
        if above[folder] or not file:
            continue
        suffix = splitext(file)[1].lower()
        if is_system(file):
            left_out["hidden or of the system"] += 1
        elif suffix == ".png" and name[: -len(suffix)] in pages:
            left_out["beside a page of the same name"] += 1
        elif suffix in EXTRAS:
            left_out[f"{suffix} (pip install '{EXTRAS[suffix]}')"] += 1
        elif not listed and suffix not in SUFFIXES:
            left_out[suffix[:12] or "without an ending"] += 1
        else:
            left_out["of a name that comes twice"] += name in kept
            kept[row if listed else name] = row
    for folder in set(above.values()) - {""}:
        left_out["folders of runs and predictions/" if folder in own else f"{folder.rpartition('/')[2]}/"] += 1
    return list(kept.values()) if listed else sorted(kept.values(), key=names.__getitem__), +left_out


def common_folder(names: Iterable[str]) -> str:
    """The folder, with its slash, in which all names lie; empty if there is none."""
    folders = [folder.split("/") for folder in {name.rpartition("/")[0] for name in names}]
    shared = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))]
    return "/".join([*shared, ""]) if any(shared) else ""


def count_left_out(left_out: Counter[str]) -> str:
    """What was left out, in words: "62 files left out: 60 .txt, 2 without an ending"."""
    total, most = left_out.total(), left_out.most_common(6)
    what = "" if total == 1 else " files and folders" if any("/" in reason for reason in left_out) else " files"
    rest = [("of other kinds", total - sum(count for _, count in most))] * (len(left_out) > len(most))
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in most + rest)
    return f"{total:,}{what} left out: {reasons}" if total else "no file left out"


def name_splits(names: Iterable[str]) -> dict[str, str]:
    """Those of some names that mean a split, or images without labels beside splits, and which.

    By a word that is in them (train2017, test_set), where one of train is there and one of val or test: for splits
    that no other one is the whole name of.
    """
    names = list(names)
    exact = {name: split for name in names if (split := _SPLITS.get(name.lower()))}
    found = exact | {name: split for name in names if (split := _split_by_word(name)) and split not in exact.values()}
    if "train" not in found.values() or len(set(found.values())) < 2:
        found = exact
    if not found:
        return {}
    return found | {name: UNLABELLED for name in names if name.lower() == "extra" or _UNLABELLED & _words(name)}


def _words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def _split_by_word(name: str) -> str | None:
    splits = {_WORDS[word] for word in _words(name) if word in _WORDS}
    return splits.pop() if len(splits) == 1 else None


def is_no_label(text: str, folder: bool = False) -> bool:
    """Whether a label, or a folder of images, says that there is none; one named None is a class like others."""
    return text in ({""} if folder else _NO_LABEL) or (bool(words := _words(text)) and words <= _UNLABELLED)


def as_labels(values: np.ndarray) -> list[str]:
    """An array of labels as words; negative numbers and NaN are none."""
    values = np.char.decode(values, "utf-8", "replace") if values.dtype.kind == "S" else values
    unique, places = np.unique(values, return_inverse=True)
    texts = [str(value) if isinstance(value, str) or value >= 0 else "" for value in unique.tolist()]
    return [texts[place] for place in places.tolist()]


def sort_classes(labels: Iterable[str], folders: bool = False) -> tuple[str, ...]:
    """Class names, or those of folders, in order: plain numbers in theirs, others in that of their letters."""
    known = {label for label in set(labels) if not is_no_label(label, folders)}
    plain = all(re.fullmatch(r"[0-9]+(\.[0-9]+)?", name) for name in known)
    return tuple(sorted(known, key=lambda name: (float(name) if plain else 0.0, name)))
