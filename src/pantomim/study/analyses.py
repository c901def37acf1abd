"""What a study looks at in each cell beside its scores: how blocks work, and how CAE's parts agree."""

import json
from pathlib import Path

from pantomim.analysis import LAYERS
from pantomim.analysis.alignment import measure_agreement
from pantomim.analysis.block_facts import write_block_facts
from pantomim.core.files import replace_file
from pantomim.study.plan import Analysis

FILES: dict[Analysis, str] = {
    "alignment": "agreement.json",
    "attention-distance": "attention-distance.npz",
    "spectrum": "spectrum.npz",
}


def analyse(name: Analysis, run: Path, path: Path) -> None:
    """Carry out an analysis of a finished run, on held-out images of its data, and write its file."""
    if name == "alignment":
        replace_file(path, (json.dumps(measure_agreement(run), indent=2) + "\n").encode())
    else:
        write_block_facts(LAYERS[name]((str(run),)).run(), path)


def read_numbers(name: Analysis, path: Path) -> dict[str, float]:
    """The numbers of an analysis that a table may show."""
    if name != "alignment" or not path.is_file():
        return {}
    values: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return values
