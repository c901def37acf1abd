"""What a study looks at in each cell beside its scores: how blocks work, how CAE's parts agree, and pictures."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from pantomim.analysis.agreement import measure_agreement
from pantomim.analysis.alignment import write_alignment_arrays
from pantomim.analysis.attention_distance import AttentionDistance
from pantomim.analysis.block_facts import write_block_facts
from pantomim.analysis.reconstructions import write_reconstructions
from pantomim.analysis.spectrum import Spectrum
from pantomim.core.files import replace_file
from pantomim.study.plan import Analysis

FILES: dict[Analysis, str] = {
    "alignment": "agreement.json",
    "attention-distance": "attention-distance.npz",
    "spectrum": "spectrum.npz",
}


def analyse(name: Analysis, run: Path, path: Path) -> None:
    """Carry out an analysis of a finished run, on held-out images of its data, and write its file."""
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
        write_alignment_arrays(run, count=count)


def _write_agreement(run: Path, path: Path) -> None:
    replace_file(path, (json.dumps(asdict(measure_agreement(run)), indent=2) + "\n").encode())


def _write_distances(run: Path, path: Path) -> None:
    write_block_facts(AttentionDistance((str(run),)).run(), path)


def _write_spectrum(run: Path, path: Path) -> None:
    write_block_facts(Spectrum((str(run),)).run(), path)


_ANALYSES: dict[Analysis, Callable[[Path, Path], None]] = {
    "alignment": _write_agreement,
    "attention-distance": _write_distances,
    "spectrum": _write_spectrum,
}
