"""The run folder: one run, one config, one process group at a time; an unfinished one is resumed."""

import gzip
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from filelock import BaseFileLock, FileLock, Timeout

from pantomim.checkpoint import Checkpoint
from pantomim.checkpoint import remove_leftovers as remove_leftover_checkpoints
from pantomim.config import Pretrain, RuntimeConfig, from_yaml, is_of_earlier_version, leaves, to_dict, to_yaml
from pantomim.core.files import remove_leftovers, replace_file
from pantomim.core.reading import read_json
from pantomim.data.record import LIST, RECORD, DataRecord, has_steps, read_list, read_record
from pantomim.data.sources import place
from pantomim.engine.record import read_metrics
from pantomim.engine.runtime import on_main
from pantomim.engine.setup import Images, shorter
from pantomim.formats.native import NAMES, SEGMENTER, TOKENIZER, read_description, read_pair

# What may change between two starts of a run: how it is carried out, not what is learned (but for rounding). What
# `runtime.precision` comes to on this device is compared all the same: see `RunFolder.describe`.
FREE = frozenset({"data.workers", "data.memory_gib"} | {f"runtime.{item.name}" for item in fields(RuntimeConfig)}) - {
    "runtime.seed"
}
SHOWN = 3  # names of each kind of difference
PACKAGES = ("pantomim", "torch", "torchvision", "accelerate", "numpy", "pillow", "safetensors", "timm")


class RunInUseError(OSError):
    """Another process holds the run folder."""


@dataclass(frozen=True)
class Finished:
    """The summary of a complete run, in `finished.json` (without the last entry)."""

    steps: int
    wall_s: float  # training time over all starts of the run, without work that was lost
    images_per_s: float | None  # without the first step after each start; None in runs of one step
    loss: float | None  # of the last step; None in a run of none
    broken: list[str] = field(default_factory=list)  # images that were skipped
    alarms: list[str] = field(default_factory=list)  # warnings of the method
    files: dict[str, str] = field(default_factory=dict)  # the hash of the weights of each pair that was written
    already: bool = False  # the run was complete before, and has been left as it was


class RunFolder:
    """Where a run writes; the folder need not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self._lock = FileLock(path / ".lock", timeout=0)

    @contextmanager
    def hold(self, accelerator: Accelerator, config: Pretrain) -> Iterator[bool]:
        """Make the folder, or resume the run in it; nobody else can while the context lasts.

        Gives whether the run there is the shorter one that this config is to extend (`extend` does).
        """
        try:
            yield on_main(accelerator, lambda: self._open(config))
        finally:
            self._lock.release()

    def finished(self) -> Finished | None:
        """The summary of the run, if it is complete and what it wrote is whole; else it can be written anew.

        Raises `ValueError` where there is nothing left to write it from.
        """
        file = self.path / "finished.json"
        try:
            found: Finished = read_json(file, Finished, "Remove it, and run the same command: no step is lost.")
        except FileNotFoundError:
            return None
        if not (lost := self._lost(found)):
            logged = [0, *(int(values["step"]) for values in read_metrics(self.metrics))]
            if self.metrics.is_file() and logged[-1] != found.steps:
                raise ValueError(
                    f"{self.metrics} must hold the log of all {found.steps} steps; got one that ends with step "
                    f"{logged[-1]}. Put it back as it was, or remove it: the weights are whole."
                )
            return replace(found, already=True)
        if any(self.checkpoints.glob("step-*")):
            return None
        raise ValueError(
            f"Pretrain.out must hold what its finished run wrote, or a checkpoint to write it from; got {self.path} "
            f"without either ({lost}). Remove {file} to train again from the first step, or choose another folder."
        )

    def _lost(self, found: Finished) -> str:
        """Why what the run wrote cannot be used; empty if it can."""
        there = {file.stem for file in self.path.glob("*.*") if file.suffix in (".json", ".safetensors")}
        stated = found.files or dict.fromkeys(there & {*NAMES, SEGMENTER, TOKENIZER}, "")  # of old, none stated
        for name, sha256 in stated.items():
            try:
                read_pair(self.path, name)
            except ValueError as error:
                return str(error)
            if sha256 not in ("", read_description(self.path, name)["sha256"]):
                return f"{name} has another hash than finished.json states"
        return "" if stated else "there are no weights"

    def finish(self, finished: Finished) -> None:
        """Write `finished.json`: the run is complete."""
        values = asdict(finished)
        del values["already"]
        self._write("finished.json", json.dumps(values, indent=2) + "\n")

    def describe(
        self, config: Pretrain, accelerator: Accelerator, dtype: torch.dtype, step: int, origin: str | None = None
    ) -> None:
        """Write `environment.json` at the first start; later ones, of the same precision, go to its list `resumed`.

        `origin` tells of the weights that the run starts from, and how they were adapted.
        """
        path = self.path / "environment.json"
        now = environment(config.runtime.seed, accelerator, dtype) | ({} if origin is None else {"init": origin})
        if config.runtime.precision == "bfloat16_residual":
            now["precision"] = config.runtime.precision
        if step > 0 and path.is_file():
            advice = "Remove it: it only tells of machine and versions."
            first, known = read_json(path, dict[str, Any], advice), read_json(path, _Started, advice)
            if (before := known.precision or now["precision"]) != now["precision"]:
                raise ValueError(
                    f"RuntimeConfig.precision must stay that of the first {step} steps, {before}; got "
                    f"{config.runtime.precision}, which is {now['precision']} on {now['device']}. "
                    f"Set it to {before}, or choose another folder."
                )
            now = {**first, "resumed": [*known.resumed, {"step": step, **now}]}
        self._write(path.name, json.dumps(now, indent=2) + "\n")

    def list_images(self, name: str, names: Sequence[str]) -> None:
        """Write which images something is done with, one a line."""
        self._write(name, "".join(f"{name}\n" for name in names))

    def keep_images(self, images: Images, source: str, skipped: Collection[str]) -> None:
        """Write down which images a run begins with; one that is resumed must have the same.

        Those that can no longer be read may differ, and those that were `skipped` before.
        """
        ours, before = images.identity(), None
        classes = None if images.masks is None else images.masks.names
        if (record := read_record(self.path)) is None:
            found = DataRecord(
                place(source), len(ours.names), ours.sha256, images.facts, classes, len(images.held_back or ())
            )
            replace_file(self.path / LIST, gzip.compress(ours.text, 3, mtime=0))
            self._write(RECORD, json.dumps(asdict(found), indent=2) + "\n")
            return
        different = [] if classes == record.mask_classes else ["classes of masks"]
        if ours.sha256 == record.sha256 and read_list(self.path) is None:
            replace_file(self.path / LIST, gzip.compress(ours.text, 3, mtime=0))
        if ours.sha256 != record.sha256 and ((before := read_list(self.path)) is None or before.sha256 != ours.sha256):
            changes = {} if before is None else ours.changes(before)
            if changes.keys() != {"changed"} or not images.are_broken({*changes["changed"]} - {*skipped}):
                counts = f"{record.images:,} there, {len(ours.names):,} here, or another order"
                different += [
                    f"{len(names):,} {kind} ({', '.join(names[:SHOWN])}{', ...' * (len(names) > SHOWN)})"
                    for kind, names in changes.items()
                ] or [counts]
        if different:
            lines = "".join(f"\n  {line}" for line in different)
            raise ValueError(
                f"DataConfig.source must hold the images that a run began with; got {source} for {self.path}, which "
                f"differs in:{lines}\nPut them back as they were, or choose another folder."
            )

    def extend(self, config: Pretrain, checkpoint: Checkpoint | None, total: int, since: int) -> None:
        """Turn the finished run of `since` steps into the unfinished one of `total`."""
        if checkpoint is None or checkpoint.step != since:
            there = "no checkpoint" if checkpoint is None else f"step {checkpoint.step}"
            raise ValueError(
                f"Pretrain.extended must be of a run that is finished and has its last checkpoint; got {self.path} "
                f"with {there} of {since} steps. Resume it first, with the same command."
            )
        if total <= since:
            raise ValueError(
                f"Pretrain.duration must be longer than the {since} steps of the run in {self.path}; got {total}. "
                f"Name the length of the whole run."
            )
        (self.path / "finished.json").unlink(missing_ok=True)
        self._write("config.yaml", to_yaml(config))

    def check_checkpoint(self, checkpoint: Checkpoint, config: Pretrain, total: int) -> None:
        """Refuse a checkpoint of another run, by its seed, settings and length.

        Settings that only one of both has are passed over, and places, which may move: images, tokenizers and teachers
        are known by hashes.
        """
        ours, theirs = identity_of(config, total), {"runtime.seed": checkpoint.random.get("seed"), **checkpoint.run}
        compared = {key for key in ours.keys() & theirs.keys() if "/" not in f"{ours[key]}{theirs[key]}"}
        late = [f"step: {checkpoint.step} there, at most {total} here"] if checkpoint.step > total else []
        stated = checkpoint.path / "checkpoint.json"
        refuse_changes("Pretrain", "checkpoint", stated, theirs, ours, lambda key: key not in compared, late)

    def _open(self, config: Pretrain) -> bool:
        take_folder("Pretrain", "run", self.path, "config.yaml", self._lock)
        remove_leftover_checkpoints(self.checkpoints)
        written = self.path / "config.yaml"
        theirs = from_yaml(type(config), written) if written.is_file() else None
        if theirs is not None and has_steps(self.path):
            if is_of_earlier_version(written):
                raise ValueError(
                    f"Pretrain.out must hold no run of an earlier version, which cannot be resumed; got {self.path}. "
                    f"Choose another folder."
                )
            extending = bool(config.extended) and theirs.extended == config.extended[:-1]
            compared = shorter(config) if extending else config
            ours, there = leaves(to_dict(compared)), leaves(to_dict(theirs))
            if (record := read_record(self.path)) is not None and record.source == place(config.data.source):
                there["data.source"] = config.data.source
            longer = compared.duration != theirs.duration and not hasattr(config.method, "num_classes")
            advice = " A finished run is trained longer with pretrain.extend." if longer else ""
            refuse_changes("Pretrain", "run", written, there, ours, FREE.__contains__, advice=advice)
            return extending
        if config.extended:
            first = config.extended[0]
            raise ValueError(
                f"Pretrain.extended must be empty for a run that begins; got {first} in {self.path}, which has no "
                f"steps. Train for {first} first, then extend that run."
            )
        self._write(written.name, to_yaml(config))
        return False

    def _write(self, name: str, text: str) -> None:
        replace_file(self.path / name, text.encode(errors="surrogateescape"))


@dataclass(frozen=True)
class _Started:
    """What is read of an `environment.json`."""

    precision: str | None = None
    resumed: list[Any] = field(default_factory=list)


def identity_of(config: Pretrain, total: int) -> dict[str, Any]:
    """What a checkpoint is known by as one of a run: all settings that decide it, and its length in steps."""
    return {key: value for key, value in leaves(to_dict(config)).items() if key not in FREE} | {"steps": total}


def same(there: Any, here: Any) -> bool:
    """Whether two settings are equal, or names of one place."""
    if isinstance(there, str) and isinstance(here, str):
        return there == here or place(there) == place(here)
    return bool(there == here)


def take_folder(owner: str, what: str, path: Path, plan: str, lock: BaseFileLock) -> None:
    """Make a folder, or find the one that was made for the same purpose, and lock it.

    `plan` is the file that tells such a folder from others; messages name the `owner` of `out`, and `what` it holds.
    Raises `RunInUseError` if another process holds the lock.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        others = sorted(file.name for file in path.iterdir() if not file.name.startswith("."))
        if others and plan not in others:
            raise ValueError(
                f"{owner}.out must be a new folder or that of a {what}; got {path}, which holds "
                f"{', '.join(others[:5])} and no {plan}. Choose another folder."
            )
        lock.acquire()
        remove_leftovers(path)
    except Timeout:
        raise RunInUseError(
            f"{owner}.out must not be in use; got {path}, which another pantomim process is working on. Wait for it, "
            f"or choose another folder."
        ) from None
    except OSError as error:
        raise ValueError(
            f"{owner}.out must be a folder that can be written to; got {path} ({error.strerror or error}). Choose "
            f"another folder."
        ) from error


def refuse_changes(
    owner: str,
    what: str,
    written: Path,
    theirs: Mapping[str, Any],
    ours: Mapping[str, Any],
    is_free: Callable[[str], bool],
    more: Sequence[str] = (),
    advice: str = "",
) -> None:
    """Refuse to resume what is in a folder with other settings (by dotted name) than it was started with.

    `written` holds theirs; those that are free may change between two starts; `more` says what else differs.
    """
    different = [
        f"{key}: {theirs.get(key)} there, {ours.get(key)} here"
        for key in dict.fromkeys([*theirs, *ours])
        if not is_free(key) and not same(theirs.get(key), ours.get(key))
    ]
    if different := [*more, *different]:
        more = [f"and {len(different) - 20} more"] if len(different) > 20 else []
        lines = "".join(f"\n  {line}" for line in [*different[:20], *more])
        raise ValueError(
            f"{owner}.out must hold no {what} of another config; got {written.parent}, which differs in:{lines}\n"
            f"Choose another folder, or resume with the settings in {written}.{advice}"
        )


def environment(seed: int, accelerator: Accelerator, dtype: torch.dtype) -> dict[str, Any]:
    """Everything outside the config that a run depends on: versions, commit, hardware, command."""
    device, packages = accelerator.device, {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "seed": seed,
        "python": platform.python_version(),
        "packages": packages,
        "git": _git_commit(Path(__file__).parent),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "precision": str(dtype).removeprefix("torch."),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "processes": accelerator.num_processes,
    }


def _git_commit(folder: Path) -> str | None:
    """The commit of the checkout that the code runs from, with "+changes" if files differ from it; None outside one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # installed into somebody else's checkout: not our commit
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
