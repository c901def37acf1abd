"""What was measured of every block of some encoders, and the files it lies in; no model code."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pantomim.core.files import write_npz

CKA = "cka"  # the only array that is not one encoder's: all layers of all encoders with each other


@dataclass(frozen=True)
class BlockFacts:
    """An analysis of encoders: arrays NAME_0 ... in the order of `about["encoders"]`; of CKA one matrix for all."""

    kind: str  # name of the analysis
    arrays: dict[str, np.ndarray]
    about: dict[str, Any]  # the encoders, the images, and how it was measured; plain values

    @property
    def names(self) -> list[str]:
        """Of the encoders."""
        return [encoder["name"] for encoder in self.about["encoders"]]

    @property
    def depths(self) -> list[int]:
        """Blocks of the encoders."""
        return [encoder["depth"] for encoder in self.about["encoders"]]

    def of(self, name: str, number: int) -> np.ndarray:
        """An array of one encoder; for CKA the matrix of its own layers."""
        return self.between(number, number) if name == CKA else self.arrays[f"{name}_{number}"]

    def between(self, first: int, second: int) -> np.ndarray:
        """CKA of the layers of one encoder (rows) with those of another."""
        ends = np.cumsum([0, *self.depths])
        return self.arrays[CKA][ends[first] : ends[first + 1], ends[second] : ends[second + 1]]

    def alone(self, number: int) -> "BlockFacts":
        """The same of one of the encoders."""
        about = self.about | {"encoders": [self.about["encoders"][number]]}
        if CKA in self.arrays:
            return BlockFacts(self.kind, {CKA: self.between(number, number)}, about)
        own = [name for name in self.arrays if name.endswith(f"_{number}")]
        return BlockFacts(self.kind, {f"{name.rpartition('_')[0]}_0": self.arrays[name] for name in own}, about)


def write_block_facts(found: BlockFacts, page: Path) -> list[Path]:
    """Write the arrays beside the page, and those of each run folder into RUN/analysis/KIND.npz; gives all paths."""
    written = []
    for number, encoder in enumerate(found.about["encoders"]):
        if (folder := Path(encoder["spec"])).is_dir():
            written.append(_write(found.alone(number), folder / "analysis" / f"{found.kind}.npz"))
    beside = page.with_suffix(".npz")
    if beside not in written or len(found.names) > 1:
        written.append(_write(found, beside))
    return list(dict.fromkeys(written))


def _write(found: BlockFacts, path: Path) -> Path:
    return write_npz(path, found.arrays | {"about": np.array(json.dumps(found.about))}, compressed=True)


def read_block_facts(path: Path) -> BlockFacts:
    """What `write_block_facts` wrote."""
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            found = BlockFacts(about["analysis"], {name: file[name] for name in file.files if name != "about"}, about)
        if CKA in found.arrays:
            stated = {CKA: sum(found.depths)}
        else:
            stated = {name: found.depths[int(name.rpartition("_")[2])] for name in found.arrays}
        lengths = {name: len(array) for name, array in found.arrays.items() if array.ndim}
        if not lengths or any(length != stated[name] for name, length in lengths.items()):
            raise ValueError(f"{lengths} layers, where it states {about['encoders']}")
    except (OSError, ValueError, LookupError, TypeError, EOFError) as error:
        raise ValueError(
            f"{path} must be a file that `pantomim inspect` wrote; got {type(error).__name__}: {error}. Write it anew."
        ) from error
    return found
