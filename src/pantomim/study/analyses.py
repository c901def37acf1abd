"""What a study looks at in each cell beside its scores: how blocks work, how CAE's parts agree, and pictures."""

import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pantomim.analysis.agreement import measure_agreement
from pantomim.analysis.alignment import inspect_alignment
from pantomim.analysis.reconstructions import write_reconstructions
from pantomim.files import replace_file
from pantomim.study.plan import Analysis

ALIGNMENT_PICTURES = "alignment.npz"
FILES: dict[Analysis, str] = {"alignment": "alignment.json"}


@dataclass(frozen=True)
class WithoutRegressor:
    """What a run's decoder makes of images without the regressor, as 8-bit pictures.

    Args:
        items: Names of the images.
        original: The images.
        references: What is in a picture whatever the decoder does, or at best; by title.
        shown: The decoder's pictures.
        text: Alignment and score of the run.
        caption: What one must know to read them.
    """

    items: tuple[str, ...]
    original: np.ndarray
    references: dict[str, np.ndarray]
    shown: np.ndarray
    text: str
    caption: str


def analyse(name: Analysis, run: Path, path: Path) -> None:
    """Carry out an analysis of a finished run and write its file."""
    _ANALYSES[name](run, path)


def read_numbers(name: Analysis, path: Path) -> dict[str, float]:
    """The numbers of an analysis that a table may show."""
    if name != "alignment" or not path.is_file():
        return {}
    values: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return values


def write_pictures(method: str, run: Path, count: int) -> None:
    """Pictures of held-out images, for the methods that make any.

    Args:
        method: Its kind.
        run: A finished run.
        count: How many images.

    Raises:
        ValueError: if no picture can be made of what a run of CAE predicts.
    """
    if method == "mae":
        write_reconstructions(run, count=count)
    elif method == "cae":
        _write_without_regressor(run, count)


def read_without_regressor(run: Path) -> WithoutRegressor | None:
    """What `write_pictures` left in a run of CAE; None if there is nothing."""
    path = run / "analysis" / ALIGNMENT_PICTURES
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        about = json.loads(str(arrays["about"]))
        rows = [arrays[f"row_{number}"] for number in range(len(about["titles"]))]
    references = dict(zip(about["titles"][1:-1], rows[1:-1], strict=True))
    return WithoutRegressor(tuple(about["items"]), rows[0], references, rows[-1], about["text"], about["caption"])


def _write_without_regressor(run: Path, count: int) -> None:
    found = inspect_alignment([run], count=count)
    about = {
        "items": found.items,
        "titles": [row.title for row in found.rows],
        "text": found.rows[-1].text,
        "caption": found.caption,
    }
    buffer = io.BytesIO()
    rows: dict[str, Any] = {f"row_{number}": row.pictures for number, row in enumerate(found.rows)}
    np.savez_compressed(buffer, allow_pickle=False, **rows, about=np.array(json.dumps(about)))
    replace_file(run / "analysis" / ALIGNMENT_PICTURES, buffer.getvalue())


def _write_agreement(run: Path, path: Path) -> None:
    replace_file(path, (json.dumps(asdict(measure_agreement(run)), indent=2) + "\n").encode())


_ANALYSES: dict[Analysis, Callable[[Path, Path], None]] = {"alignment": _write_agreement}
