"""Checkpoints of a run: a folder that is either whole or not there, safetensors and JSON, no pickled code.

    checkpoints/step-00000100/weights.safetensors      every parameter and buffer of the method, by name
                              optimizer.safetensors    the optimiser's state, as PARAMETER/KEY
                              checkpoint.json          step, random state, progress; size and SHA-256 of the other two;
                                                       SHA-256 of the frozen parts, which lie in no file; whose it is

Frozen parts (tokenizers, teachers: their attribute `frozen` is True) are loaded again from their source; a run resumes
only with the same. The random state is (seed, step), from which each step seeds all generators (`engine.runtime`).
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from pantomim.core.files import remedy, sync_folder
from pantomim.core.reading import as_kind, read_json
from pantomim.formats.files import frozen_hashes, frozen_parts, key_report, other_parts

FORMAT_VERSION = 2
WEIGHTS, OPTIMIZER, DESCRIPTION = "weights.safetensors", "optimizer.safetensors", "checkpoint.json"


class CheckpointError(OSError):
    """A checkpoint that cannot be written or read; the message says what is left and what to do."""


@dataclass(frozen=True)
class Progress:
    """What the next start needs to know of those before it."""

    time_s: float = 0.0  # these three are a `Clock`'s
    timed_images: int = 0
    timed_s: float = 0.0
    loss: float | None = None  # of the last logged step
    logged: int = 0  # steps in `metrics.jsonl`
    broken: dict[str, str] = field(default_factory=dict)  # why each image was skipped, by name
    warnings: list[str] = field(default_factory=list)  # of the method
    scaler: dict[str, float | int] = field(default_factory=dict)  # of the loss in float16


@dataclass(frozen=True)
class Checkpoint:
    """What the `checkpoint.json` of a whole checkpoint states."""

    step: int
    files: dict[str, dict[str, int | str]]
    progress: Progress
    random: dict[str, int] = field(default_factory=dict)
    frozen: dict[str, str] = field(default_factory=dict)  # the hash of each frozen part
    run: dict[str, Any] = field(default_factory=dict)  # whose it is: settings; empty in those of earlier versions
    path: Path = Path()  # its folder


def save_checkpoint(
    folder: Path,
    method: nn.Module,
    optimizer: Optimizer,
    *,
    step: int,
    seed: int,
    progress: Progress,
    keep: int,
    run: Mapping[str, Any] | None = None,
) -> Path:
    """Write `folder/step-XXXXXXXX` whole or not at all, then remove all but the newest `keep`.

    Checkpoints of later steps are removed too: they belong to a continuation that was abandoned. The optimiser's groups
    must name their parameters (`param_names`). `run` are plain values by which its run knows it again.

    Raises:
        CheckpointError: if the disk is full or the folder cannot be written to; earlier checkpoints are untouched.
    """
    path = folder / f"step-{step:08d}"
    temporary = folder / f".{path.name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        temporary.mkdir()
        for name, tensors in ((WEIGHTS, _changing(method)), (OPTIMIZER, _flatten(optimizer))):
            on_cpu = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            save_file(on_cpu, temporary / name)
        description = {"format_version": FORMAT_VERSION, "step": step, "random": {"seed": seed, "step": step}}
        description |= {"progress": asdict(progress), "frozen": frozen_hashes(method), "run": dict(run or {})}
        description["files"] = {name: _fingerprint(temporary / name) for name in (WEIGHTS, OPTIMIZER)}
        (temporary / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        for name in (WEIGHTS, OPTIMIZER, DESCRIPTION):
            (temporary / name).chmod((temporary / DESCRIPTION).stat().st_mode)  # safetensors lets in the owner alone
            with (temporary / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(temporary)
        _remove(path)
        temporary.rename(path)
        sync_folder(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        earlier = f"That of step {max(steps)} is untouched" if (steps := _steps(folder)) else "There is no earlier one"
        advice = remedy(error)
        advice += " (or lower runtime.keep)" if advice == "Make room" else ""
        raise CheckpointError(
            f"The checkpoint of step {step} could not be written to {folder}: {error}. {earlier}. "
            f"{advice}, then run the same command to resume."
        ) from error
    steps = _steps(folder)
    for old in steps.keys() - set(sorted(s for s in steps if s <= step)[-keep:]):
        _remove(steps[old])
    return path


def remove_leftovers(folder: Path) -> None:
    """Remove what a save that was killed has left."""
    for leftover in folder.glob(".step-*"):
        _delete(leftover)


def find_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint, or None if there are none at all; damaged ones are passed over with a warning.

    Raises:
        CheckpointError: if there are checkpoints and every one is damaged.
    """
    problems = []
    for step, path in sorted(_steps(folder).items(), reverse=True):
        try:
            found = _validate(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(
                f"{' '.join(problems)} Resuming from the checkpoint before, step {step}; the steps since are repeated.",
                stacklevel=2,
            )
        return found
    if problems:
        raise CheckpointError(
            f"{folder} must hold at least one whole checkpoint; got none. {' '.join(problems)} "
            f"Copy them again, or remove {folder} to start from the first step."
        )
    return None


def kept_checkpoints(folder: Path) -> list[Checkpoint]:
    """Every whole checkpoint of a run, the oldest first."""
    kept = []
    for _, path in sorted(_steps(folder).items()):
        with contextlib.suppress(CheckpointError):
            kept.append(_validate(path))
    return kept


def load_checkpoint(checkpoint: Checkpoint, method: nn.Module, optimizer: Optimizer) -> None:
    """Put a checkpoint's weights and optimiser state in place; names, shapes and frozen parts must agree."""
    if different := other_parts(frozen_hashes(method), checkpoint.frozen):
        raise ValueError(
            f"{checkpoint.path} must be resumed with the tokenizer and the teachers of its run; got another "
            f"{different}. Put the files back that they were loaded from; what is drawn from the seed (a random "
            f"teacher or projection) comes out alike on the same kind of processor and torch alone."
        )
    weights = load_file(checkpoint.path / WEIGHTS)
    if report := key_report(_changing(method), weights):
        raise ValueError(
            f"{checkpoint.path / WEIGHTS} must hold the weights of {type(method).__name__}; got {report}. "
            f"It belongs to another method or version."
        )
    method.load_state_dict(method.state_dict() | weights)
    _unflatten(optimizer, load_file(checkpoint.path / OPTIMIZER), checkpoint.path / OPTIMIZER)


def _validate(path: Path) -> Checkpoint:
    """Read the description and compare both files with it."""
    try:
        about = read_json(path / DESCRIPTION, dict[str, Any], "")
        if (version := as_kind(about.get("format_version"), int)) != FORMAT_VERSION:
            age = "a newer" if version > FORMAT_VERSION else "an older"
            raise CheckpointError(f"{path}: format_version must be {FORMAT_VERSION}; got {version}, of {age} pantomim.")
        stated: Checkpoint = as_kind(about, Checkpoint)
        if stated.step != int(path.name[5:]):
            raise CheckpointError(f"{path / DESCRIPTION} must be of the step in its name; got step {stated.step}.")
        for name in (WEIGHTS, OPTIMIZER):
            file, expected = path / name, stated.files.get(name, "no file")
            if (got := _fingerprint(file) if file.is_file() else "no file") != expected:
                raise CheckpointError(f"{file} must have the size and hash {expected} of {DESCRIPTION}; got {got}.")
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} must be whole; got {error}.") from error
    return replace(stated, path=path)


def _changing(method: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, without those of frozen parts."""
    outside = tuple(f"{name}." for name in frozen_parts(method))
    return {name: tensor for name, tensor in method.state_dict().items() if not name.startswith(outside)}


def _names(optimizer: Optimizer) -> dict[int, str]:
    """The name of each parameter by the number that `torch.optim` gives it."""
    groups = optimizer.state_dict()["param_groups"]
    return {i: name for group in groups for i, name in zip(group["params"], group["param_names"], strict=True)}


def _flatten(optimizer: Optimizer) -> dict[str, Tensor]:
    """The state of every parameter by its name, which outlives another order of groups."""
    names, states = _names(optimizer), optimizer.state_dict()["state"]
    return {f"{names[i]}/{key}": value for i, state in states.items() for key, value in state.items()}


def _unflatten(optimizer: Optimizer, flat: Mapping[str, Tensor], source: Path) -> None:
    states: dict[str, dict[str, Tensor]] = {}
    for path, value in flat.items():
        name, _, key = path.rpartition("/")
        states.setdefault(name, {})[key] = value
    names = _names(optimizer)
    unexpected = sorted(states.keys() - set(names.values()))
    missing = sorted(set(names.values()) - states.keys()) if states else []  # none at all before the first step
    if unexpected or missing:
        raise ValueError(
            f"{source} must hold the state of the trained parameters; got none for {', '.join(missing) or 'none'} and "
            f"unexpected state for {', '.join(unexpected) or 'none'}. It belongs to another method or version."
        )
    by_number = {i: states[name] for i, name in names.items() if states}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": by_number})


def _steps(folder: Path) -> dict[int, Path]:
    """Checkpoint folders by step, damaged ones included."""
    return {int(path.name[5:]): path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)}


def _fingerprint(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _remove(path: Path) -> None:
    """Remove a folder, if it is there; out of the way first, so that a kill leaves no half of it under its name."""
    if path.exists():
        _delete(path.rename(path.with_name(f".{path.name}.old")))


def _delete(path: Path) -> None:
    """Remove a folder, or the file or link that somebody put in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
