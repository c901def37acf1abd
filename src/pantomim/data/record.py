"""What a run found of its data when it began, in its folder; a run that is resumed does not ask anew."""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

from pantomim.core.reading import as_kind, read_json
from pantomim.data.dataset import Facts
from pantomim.data.identity import Identity

RECORD, LIST = "data.json", "images.json.gz"


@dataclass(frozen=True)
class DataRecord:
    """What a run found when it began, in `data.json`; the list itself lies beside it."""

    source: str  # from any folder
    images: int  # and masks
    sha256: str
    facts: Facts  # of the training images, those held out of them among them
    mask_classes: dict[int, str] | None = None
    held_back: int = 0  # images for a method's own loss, which are in none of the counts


def read_record(run: Path) -> DataRecord | None:
    """What was found when the run in a folder began; None where there is none with a step to keep, or it is of old."""
    if not has_steps(run):
        return None
    try:
        advice = "Put the file back; without it (remove it) the run is resumed whatever its images are now."
        found: DataRecord = read_json(run / RECORD, DataRecord, advice)
    except FileNotFoundError:
        return None
    return found


def read_list(run: Path) -> Identity | None:
    """The images that a run began with, by name; None where the list cannot be read: it only says what differs."""
    try:
        found: Identity = as_kind(json.loads(gzip.decompress((run / LIST).read_bytes())), Identity)
    except (OSError, EOFError, ValueError, RecursionError):
        return None
    return found if len(found.names) == len(found.sizes) == len(found.labels) else None


def has_steps(run: Path) -> bool:
    """Whether there is a step to keep; a run that failed before its first step may start with another config."""
    log = run / "metrics.jsonl"
    logged = log.is_file() and log.stat().st_size > 0
    return logged or any((run / "checkpoints").glob("step-*")) or (run / "finished.json").is_file()
