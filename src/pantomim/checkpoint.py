"""Checkpoints of a run: a folder that is either whole or not there, safetensors and JSON, no pickled code.

    checkpoints/step-00000100/weights.safetensors      every parameter and buffer of the method, by name
                              optimizer.safetensors    the optimiser's state, as PARAMETER/KEY
                              checkpoint.json          step, random state, progress; size and SHA-256 of the other two;
                                                       SHA-256 of the frozen parts, which lie in no file

Frozen parts (tokenizers, teachers: modules whose attribute `frozen` is True) are made anew from where they came from; a
run resumes only with those that it was started with.

A checkpoint is written under a temporary name, forced to disk, renamed; only then do older ones go. The random state is
the pair (seed, step): every generator of a run is seeded anew from it at each step (`engine.runtime`), so that nothing
else needs to be remembered.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from pantomim.core.files import sync_folder
from pantomim.formats.files import frozen_hashes, frozen_parts, key_report, other_parts

FORMAT_VERSION = 2
WEIGHTS, OPTIMIZER, DESCRIPTION = "weights.safetensors", "optimizer.safetensors", "checkpoint.json"

Writer = Callable[[dict[str, Tensor], Path], None]


class CheckpointError(OSError):
    """A checkpoint that cannot be written or read; its text says what is left and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint found whole."""

    path: Path
    step: int  # steps done when it was written
    seed: int  # of the run; with the step, the random state
    progress: dict[str, Any]  # what else the run keeps
    frozen: dict[str, str] = field(default_factory=dict)  # hash of each frozen part of the method


def save_checkpoint(
    folder: Path,
    method: nn.Module,
    optimizer: Optimizer,
    *,
    step: int,
    seed: int,
    progress: Mapping[str, Any],
    keep: int,
    write: Writer = save_file,
) -> Path:
    """Write `folder/step-XXXXXXXX` whole or not at all, then remove all but the newest `keep`.

    Checkpoints of later steps are removed too: they belong to a continuation that was abandoned.

    Args:
        folder: Made if needed.
        method: Whose parameters and buffers are saved; of its frozen parts, the hash.
        optimizer: Its groups must name their parameters (`param_names`).
        step: Steps done.
        seed: Of the run.
        progress: Plain values to find again in `Checkpoint.progress`.
        keep: Checkpoints that are kept, this one included.
        write: Writes named tensors to a file.

    Raises:
        CheckpointError: if the disk is full or the folder cannot be written to; earlier checkpoints are untouched.
    """
    path = folder / f"step-{step:08d}"
    temporary = folder / f".{path.name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".step-*"):  # of a save that was killed
            shutil.rmtree(leftover)
        temporary.mkdir()
        write(_on_cpu(_changing(method)), temporary / WEIGHTS)
        write(_on_cpu(_flatten(optimizer)), temporary / OPTIMIZER)
        description = {
            "format_version": FORMAT_VERSION,
            "step": step,
            "random": {"seed": seed, "step": step},
            "progress": dict(progress),
            "frozen": frozen_hashes(method),
            "files": {name: _fingerprint(temporary / name) for name in (WEIGHTS, OPTIMIZER)},
        }
        (temporary / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        for name in (WEIGHTS, OPTIMIZER, DESCRIPTION):
            _force_to_disk(temporary / name)
        sync_folder(temporary)
        _remove(path)
        temporary.rename(path)
        sync_folder(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        earlier = f"That of step {max(steps)} is untouched" if (steps := _steps(folder)) else "There is no earlier one"
        raise CheckpointError(
            f"The checkpoint of step {step} could not be written to {folder}: {error}. {earlier}. "
            f"Make room (or lower runtime.keep), then run the same command to resume."
        ) from error
    kept = sorted((s for s in _steps(folder) if s <= step), reverse=True)[:keep]
    for old in _steps(folder).keys() - set(kept):
        _remove(folder / f"step-{old:08d}")
    return path


def find_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint, or None if there are none at all.

    A damaged one is passed over with a warning that names it; it is never loaded.

    Raises:
        CheckpointError: if there are checkpoints and every one is damaged.
    """
    steps = _steps(folder)
    problems = []
    for step in sorted(steps, reverse=True):
        try:
            found = _validate(steps[step])
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
    """Put a checkpoint's weights and optimiser state in place; every name and shape must agree.

    Raises:
        ValueError: with all missing, unexpected and mis-shaped names; or if a frozen part is not the run's.
    """
    if different := other_parts(frozen_hashes(method), checkpoint.frozen):
        raise ValueError(
            f"{checkpoint.path} must be resumed with the tokenizer and the teachers of its run; got another "
            f"{different}. Put the files back that they were loaded from, or start a new run in another folder."
        )
    weights = load_file(checkpoint.path / WEIGHTS)
    if report := key_report(_changing(method), weights):
        raise ValueError(
            f"{checkpoint.path / WEIGHTS} must hold the weights of {type(method).__name__}; got {report}. "
            f"It belongs to another method or version."
        )
    method.load_state_dict(method.state_dict() | weights)
    _unflatten(optimizer, load_file(checkpoint.path / OPTIMIZER), str(checkpoint.path / OPTIMIZER))


def _validate(path: Path) -> Checkpoint:
    """Read the description and compare both files with it.

    Raises:
        CheckpointError: if anything is missing, cut or changed.
    """
    try:
        description = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        version, files = description["format_version"], description["files"]
        found = Checkpoint(
            path,
            description["step"],
            description["random"]["seed"],
            description["progress"],
            description.get("frozen", {}),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / DESCRIPTION} must be whole; got {error!r}.") from error
    if version != FORMAT_VERSION:
        age = "a newer" if version > FORMAT_VERSION else "an older"
        raise CheckpointError(f"{path}: format_version must be {FORMAT_VERSION}; got {version}, of {age} pantomim.")
    for name in (WEIGHTS, OPTIMIZER):
        file, expected = path / name, files[name]
        if not file.is_file():
            raise CheckpointError(f"{file} must be there; it is missing.")
        if file.stat().st_size != expected["bytes"]:
            raise CheckpointError(f"{file} must have {expected['bytes']} bytes; got {file.stat().st_size}.")
        if _fingerprint(file) != expected:
            raise CheckpointError(f"{file} must have the SHA-256 that {DESCRIPTION} states; it was changed.")
    return found


def _changing(method: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, without those of frozen parts."""
    outside = tuple(f"{name}." for name in frozen_parts(method))
    return {name: tensor for name, tensor in method.state_dict().items() if not name.startswith(outside)}


def _flatten(optimizer: Optimizer) -> dict[str, Tensor]:
    """The state of every parameter by its name, which outlives another order of groups."""
    return {
        f"{name}/{key}": value
        for name, parameter in _named_parameters(optimizer)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _unflatten(optimizer: Optimizer, state: Mapping[str, Tensor], source: str) -> None:
    named = _named_parameters(optimizer)
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name, _, leaf = key.rpartition("/")
        by_name.setdefault(name, {})[leaf] = value
    unexpected = sorted(by_name.keys() - {name for name, _ in named})
    missing = sorted({name for name, _ in named} - by_name.keys()) if by_name else []
    if unexpected or missing:
        raise ValueError(
            f"{source} must hold the state of the trained parameters; got none for {', '.join(missing) or 'none'} and "
            f"unexpected state for {', '.join(unexpected) or 'none'}. It belongs to another method or version."
        )
    indexed = {index: by_name[name] for index, (name, _) in enumerate(named) if name in by_name}
    optimizer.load_state_dict({"state": indexed, "param_groups": optimizer.state_dict()["param_groups"]})


def _named_parameters(optimizer: Optimizer) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters in the order in which `torch.optim` numbers them."""
    return [
        pair for group in optimizer.param_groups for pair in zip(group["param_names"], group["params"], strict=True)
    ]


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _steps(folder: Path) -> dict[int, Path]:
    """Checkpoint folders by step, damaged ones included."""
    if not folder.is_dir():
        return {}
    return {int(path.name[5:]): path for path in folder.iterdir() if re.fullmatch(r"step-\d{8,}", path.name)}


def _fingerprint(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _force_to_disk(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _remove(path: Path) -> None:
    """Remove a folder, if it is there; out of the way first, so that a kill leaves no half of it under its name."""
    if path.exists():
        shutil.rmtree(path.rename(path.with_name(f".{path.name}.old")))
