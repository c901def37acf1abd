"""What a run folder holds, read without model code; what is missing or damaged is said, never fatal."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from pantomim.analysis import LAYERS
from pantomim.analysis.block_facts import BlockFacts, read_block_facts

Known = TypeVar("Known")
Other = TypeVar("Other")

CURVES = (
    *("loss", "lr", "images_per_s", "data_wait_s", "grad_norm", "memory_gib", "time_s"),
    *("entropy_teacher", "entropy_student", "entropy_mask", "student_std", "loss_teacher", "loss_student"),
)


@dataclass(frozen=True)
class Metrics:
    """The logged steps, in order, and a column for each number; NaN where a step did not log it."""

    steps: np.ndarray
    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.steps)

    def has(self, name: str) -> bool:
        """Whether any logged step has a finite value."""
        return name in self.columns and bool(np.isfinite(self.columns[name]).any())


@dataclass(frozen=True)
class Pictures:
    """Reconstructions as 8-bit pictures (n, H, W, 1 or 3), where a patch was hidden, and what is known of them."""

    original: np.ndarray
    pasted: np.ndarray
    mask: np.ndarray
    about: dict[str, Any]


@dataclass(frozen=True)
class Alignment:
    """What CAE's decoder makes of whole images without the regressor.

    Args:
        rows: Title, what there is to know, and 8-bit pictures (n, H, W, C): the images first.
        items: Names of the images.
        caption: What one must know to read the pictures.
    """

    rows: list[tuple[str, str, np.ndarray]]
    items: list[str]
    caption: str


@dataclass(frozen=True)
class RunFolder:
    """Everything in a run folder that a report shows; None or empty where there is nothing.

    Args:
        path: The folder.
        config: config.yaml.
        environment: environment.json.
        finished: finished.json; there once training is complete.
        encoder: encoder.json.
        num_parameters: Learned numbers in encoder.safetensors; its position table is not counted.
        metrics: metrics.jsonl.
        evaluations: eval/*.json by file name, without the ending.
        pictures: analysis/reconstructions.npz.
        alignment: analysis/alignment.npz, of a run of CAE.
        guidance: analysis/guidance.npz, of a run of CMT-MAE; rows of pictures like those.
        inside: analysis/attention-distance.npz, spectrum.npz and cka.npz: what the encoder's blocks do.
        problems: Files that are there but cannot be read, and why.
    """

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    finished: dict[str, Any]
    encoder: dict[str, Any]
    num_parameters: int | None
    metrics: Metrics
    evaluations: dict[str, dict[str, Any]]
    pictures: Pictures | None
    alignment: Alignment | None = None
    guidance: Alignment | None = None
    inside: list[BlockFacts] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_run(run: str | Path) -> RunFolder:
    """Read a run folder.

    Raises:
        ValueError: if it is not a run folder at all: no config.yaml.
    """
    path = Path(run)
    if not (path / "config.yaml").is_file():
        raise ValueError(
            f"report.run must be a run folder; got {path}, which has no config.yaml. "
            f"Give the folder named by --out of `pantomim pretrain`."
        )
    problems: list[str] = []

    def attempt(file: Path, read: Callable[[Path], Known], otherwise: Other) -> Known | Other:
        if not file.exists():
            return otherwise
        try:
            return read(file)
        except Exception as error:  # a report of the rest is worth more than none; the page names the file
            problems.append(f"{file.relative_to(path)} cannot be read ({type(error).__name__}: {error})")
            return otherwise

    inside = [attempt(path / "analysis" / f"{kind}.npz", read_block_facts, None) for kind in LAYERS]
    found = {file.stem: attempt(file, _read_json, {}) for file in sorted((path / "eval").glob("*.json"))}
    return RunFolder(
        path=path,
        config=attempt(path / "config.yaml", _read_yaml, {}),
        environment=attempt(path / "environment.json", _read_json, {}),
        finished=attempt(path / "finished.json", _read_json, {}),
        encoder=attempt(path / "encoder.json", _read_json, {}),
        num_parameters=attempt(path / "encoder.safetensors", _count_parameters, None),
        metrics=attempt(path / "metrics.jsonl", _read_metrics, Metrics(np.empty(0, dtype=np.int64), {})),
        evaluations={stem: result for stem, result in found.items() if result},
        pictures=attempt(path / "analysis" / "reconstructions.npz", _read_pictures, None),
        alignment=attempt(path / "analysis" / "alignment.npz", _read_alignment, None),
        guidance=attempt(path / "analysis" / "guidance.npz", _read_alignment, None),
        inside=[facts for facts in inside if facts is not None],
        problems=problems,
    )


def _read_alignment(file: Path) -> Alignment:
    with np.load(file, allow_pickle=False) as content:
        about = json.loads(str(content["about"]))
        rows = [content[f"row_{number}"] for number in range(len(about["titles"]))]
    return Alignment(list(zip(about["titles"], about["texts"], rows, strict=True)), about["items"], about["caption"])


def look_up(tree: Any, dotted: str, otherwise: Any = None) -> Any:
    """The value at a dotted path into nested dictionaries."""
    for key in dotted.split("."):
        if not isinstance(tree, dict) or key not in tree:
            return otherwise
        tree = tree[key]
    return tree


def _read_json(file: Path) -> dict[str, Any]:
    value = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object is expected, not {type(value).__name__}")
    return value


def _read_yaml(file: Path) -> dict[str, Any]:
    value = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"a mapping is expected, not {type(value).__name__}")
    return value


def _read_metrics(file: Path) -> Metrics:
    """A killed run may have ended in the middle of a line, and repeats steps when it goes on: the last counts."""
    rows: dict[int, dict[str, Any]] = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            rows[int(row["step"])] = row
        except (ValueError, KeyError, TypeError):
            continue
    steps = sorted(rows)
    columns = {name: np.array([_number(rows[step].get(name)) for step in steps]) for name in CURVES}
    return Metrics(np.array(steps, dtype=np.int64), columns)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _count_parameters(file: Path) -> int:
    """From the header of a safetensors file: its length in 8 bytes, then JSON."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    tables = ("__metadata__", "pos_embed")
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name not in tables)


def _read_pictures(file: Path) -> Pictures:
    with np.load(file, allow_pickle=False) as arrays:
        about = json.loads(str(arrays["about"])) if "about" in arrays.files else {}
        return Pictures(arrays["original"], arrays["pasted"], arrays["mask"], about)
