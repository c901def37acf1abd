"""What a run folder holds, read without model code; what is missing or damaged is reported, never fatal."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pantomim.analysis import LAYERS, VIEWS
from pantomim.analysis.block_facts import BlockFacts, read_block_facts
from pantomim.analysis.pictures import PictureRows, read_rows
from pantomim.config import leaves
from pantomim.core.names import check_there
from pantomim.core.reading import read_json, read_yaml


@dataclass(frozen=True)
class Metrics:
    """The logged steps, in order, and a column for each number; NaN where a step did not log it."""

    steps: np.ndarray
    columns: dict[str, np.ndarray]

    def has(self, name: str) -> bool:
        """Whether any logged step has a finite value."""
        return name in self.columns and bool(np.isfinite(self.columns[name]).any())


@dataclass(frozen=True)
class Triplets:
    """Images in three ways, as 8-bit pictures (H, W, C) behind an image's name, and what is known of them."""

    entries: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]
    about: dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """Everything in a run folder that a report shows; None or empty where there is nothing."""

    path: Path
    config: dict[str, Any]  # config.yaml
    data: dict[str, Any]  # data.json
    held_out: int  # images of held_out_images.txt, which training was judged by
    environment: dict[str, Any]  # environment.json
    finished: dict[str, Any]  # finished.json, there once training is complete
    saved: dict[str, Any]  # checkpoint.json of the last checkpoint
    encoder: dict[str, Any]  # encoder.json
    classifier: dict[str, Any]  # classifier.json, of a fine-tuned run
    segmenter: dict[str, Any]  # segmenter.json, of a run of segmentation
    num_parameters: int | None  # learned numbers in encoder.safetensors, without its position table
    metrics: Metrics  # metrics.jsonl
    evaluations: dict[str, dict[str, Any]]  # eval/*.json by file name, without the ending
    pictures: Triplets | None  # analysis/reconstructions.npz: original, masked, reconstruction
    views: dict[str, PictureRows]  # analysis/attention.npz, alignment.npz and so on, by the name of the analysis
    segmentations: Triplets | None  # analysis/segmentations.npz: image, true and predicted classes
    hardest: PictureRows | None  # analysis/hardest.npz, of a classifier: a row for each file of its scores
    inside: list[BlockFacts]  # analysis/attention-distance.npz, spectrum.npz, cka.npz
    problems: list[str]  # files that cannot be read, and why

    @property
    def task(self) -> str:
        """What a fine-tuned run leaves: "classifier" or "segmenter"; empty where it is an encoder alone."""
        return "classifier" if self.classifier else "segmenter" if self.segmenter else ""


def read_run(run: str | Path) -> RunFolder:
    """Read a run folder; `ValueError` if it is not a run folder at all: no config.yaml."""
    check_there("report.run", path := Path(run), "a run folder")
    if not (path / "config.yaml").is_file():
        raise ValueError(
            f"report.run must be a run folder; got {path}, which has no config.yaml. "
            f"Give the folder that `pantomim pretrain` wrote."
        )
    problems: list[str] = []

    def attempt(name: str, read: Callable[[Path], Any], otherwise: Any = None) -> Any:
        file = path / name
        if not file.exists():
            return otherwise
        try:
            return read(file)
        except Exception as error:  # a report of the rest is worth more than none; the page names the file
            problems.append(f"{name} cannot be read ({type(error).__name__}: {error})")
            return otherwise

    described = ("data", "environment", "finished", "encoder", "classifier", "segmenter")
    inside = [attempt(f"analysis/{kind}.npz", read_block_facts) for kind in LAYERS]
    views = {name: attempt(f"analysis/{name}.npz", read_rows) for name, kind in VIEWS.items() if not kind.stem}
    saved = max(path.glob("checkpoints/step-*/checkpoint.json"), default=path / "checkpoint.json")
    results = sorted((path / "eval").glob("*.json"), key=lambda file: file.stem)
    found = {file.stem: attempt(f"eval/{file.name}", _read_mapping) for file in results}
    return RunFolder(
        path=path,
        config=attempt("config.yaml", _read_mapping, {}),
        **{name: attempt(f"{name}.json", _read_mapping, {}) for name in described},
        saved=attempt(str(saved.relative_to(path)), _read_mapping, {}),
        held_out=attempt("held_out_images.txt", lambda file: file.read_bytes().count(b"\n"), 0),
        num_parameters=attempt("encoder.safetensors", _count_parameters),
        metrics=attempt("metrics.jsonl", _read_metrics, Metrics(np.empty(0, dtype=np.int64), {})),
        evaluations=_told_apart({stem: result for stem, result in found.items() if result}),
        pictures=attempt("analysis/reconstructions.npz", _read_pictures),
        views={name: rows for name, rows in views.items() if rows is not None},
        segmentations=attempt("analysis/segmentations.npz", _read_segmentations),
        hardest=attempt("analysis/hardest.npz", read_rows),
        inside=[facts for facts in inside if facts is not None],
        problems=problems,
    )


def _told_apart(evaluations: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Evaluations of one protocol on data of one name say in that name where their data or settings differ."""
    alike: dict[tuple[str, str], dict[str, dict[str, str]]] = defaultdict(dict)
    for stem, values in evaluations.items():
        made = {name: look_up(values, name) for name in ("data.spec", "data.test_split", "settings", "seed")}
        flat = {name: str(value)[-80:] for name, value in leaves(made).items() if value is not None}
        alike[str(values.get("protocol")), str(values.get("dataset"))][stem] = flat
    for same in alike.values():
        names = dict.fromkeys(name for flat in same.values() for name in flat)
        apart = [name for name in names if len({flat.get(name) for flat in same.values()}) > 1]
        for stem in same if len(same) > 1 else ():
            words = [f"{name.rpartition('.')[2]} {same[stem][name]}" for name in apart if name in same[stem]]
            name = evaluations[stem].get("dataset", stem)
            evaluations[stem] |= {"name": name, "dataset": f"{name} ({', '.join(words) or stem})"}
    return evaluations


def look_up(tree: Any, dotted: str, otherwise: Any = None) -> Any:
    """The value at a dotted path into nested dictionaries."""
    for key in dotted.split("."):
        if not isinstance(tree, dict) or key not in tree:
            return otherwise
        tree = tree[key]
    return tree


def _read_mapping(file: Path) -> dict[str, Any]:
    value = read_json(file, Any, "") if file.suffix == ".json" else read_yaml(file, "")
    if not isinstance(value, dict):
        raise ValueError(f"an object of names and values is expected, not {type(value).__name__}")
    return value


def _read_metrics(file: Path) -> Metrics:
    """A killed run may have ended in the middle of a line, and repeats steps when it is resumed: the last counts."""
    rows: dict[int, dict[str, Any]] = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            rows[int(row["step"])] = row
        except (ValueError, KeyError, TypeError):
            continue
    steps = sorted(rows)
    names = dict.fromkeys(name for row in rows.values() for name in row)
    columns = {name: np.array([_number(rows[step].get(name)) for step in steps]) for name in names}
    return Metrics(np.array(steps, dtype=np.int64), columns)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _count_parameters(file: Path) -> int:
    """From the header of a safetensors file: its length in 8 bytes, then JSON."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name not in ("__metadata__", "pos_embed"))


def _read_pictures(file: Path) -> Triplets:
    with np.load(file, allow_pickle=False) as arrays:
        return as_triplets(arrays)


def as_triplets(arrays: Mapping[str, np.ndarray]) -> Triplets:
    """Of reconstructions; masked patches are transparent in the second picture of each."""
    about = json.loads(str(arrays["about"])) if "about" in arrays else {}
    original, pasted, visible = arrays["original"], arrays["pasted"], ~arrays["mask"]
    height, width = (side // count for side, count in zip(original.shape[1:3], visible.shape[1:], strict=True))
    opacity = np.uint8(255) * visible.repeat(height, axis=1).repeat(width, axis=2)
    masked = np.concatenate([original, opacity[..., None]], axis=3)
    names = [str(name) for name in about.get("items", ())]
    names += [str(number + 1) for number in range(len(names), len(original))]
    return Triplets(list(zip(names, original, masked, pasted, strict=True)), about)


def _read_segmentations(file: Path) -> Triplets:
    with np.load(file, allow_pickle=False) as content:
        about = json.loads(str(content["about"]))
        kinds = ("image", "truth", "prediction")
        entries = [(name, *(content[f"{kind}_{k}"] for kind in kinds)) for k, name in enumerate(about["items"])]
    return Triplets(entries, about)
