"""The run folder: one run, one config, one process group at a time; an unfinished one is resumed."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout

from pantomim.config import Pretrain, RuntimeConfig, from_yaml, is_of_earlier_version, leaves, to_dict, to_yaml
from pantomim.core.files import read_json, replace_file
from pantomim.engine.runtime import on_main
from pantomim.engine.stops import explain_disk

# What may change between two starts of a run: how it is carried out, not what is learned (but for rounding). What
# `runtime.precision` comes to on this device is compared all the same: see `RunFolder.describe`.
FREE = frozenset({"data.workers", "data.memory_gib"} | {f"runtime.{item.name}" for item in fields(RuntimeConfig)}) - {
    "runtime.seed"
}
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
    broken: list[str] = field(default_factory=list)  # images that were skipped since the last start
    alarms: list[str] = field(default_factory=list)  # warnings of the method since the last start
    already: bool = False  # the run was complete before, and has been left as it was


class RunFolder:
    """Where a run writes; the folder need not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self._lock = FileLock(path / ".lock", timeout=0)

    @contextmanager
    def hold(self, accelerator: Accelerator, config: Pretrain) -> Iterator[None]:
        """Make the folder, or resume the run in it; nobody else can while the context lasts."""
        try:
            on_main(accelerator, lambda: self._open(config))
            yield
        finally:
            self._lock.release()

    def finished(self) -> Finished | None:
        """The summary of the run, if it is complete."""
        try:
            return Finished(**read_json(self.path / "finished.json"), already=True)
        except FileNotFoundError:
            return None

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
        if step > 0 and path.is_file():
            first = read_json(path)
            if (before := first.get("precision", now["precision"])) != now["precision"]:
                raise ValueError(
                    f"RuntimeConfig.precision must stay that of the first {step} steps, {before}; got "
                    f"{config.runtime.precision}, which is {now['precision']} on {now['device']}. "
                    f"Set it to {before}, or choose another folder."
                )
            now = {**first, "resumed": [*first.get("resumed", []), {"step": step, **now}]}
        self._write(path.name, json.dumps(now, indent=2) + "\n")

    def list_images(self, name: str, names: Sequence[str]) -> None:
        """Write which images something is done with, one a line."""
        self._write(name, "".join(f"{name}\n" for name in names))

    def _open(self, config: Pretrain) -> None:
        take_folder("Pretrain", "run", self.path, "config.yaml", self._lock)
        written = self.path / "config.yaml"
        theirs = from_yaml(type(config), written) if written.is_file() else None
        if theirs is not None and self._has_steps():
            if is_of_earlier_version(written):
                raise ValueError(
                    f"Pretrain.out must hold no run of an earlier version, which cannot be resumed; got {self.path}. "
                    f"Choose another folder."
                )
            ours, there = leaves(to_dict(config)), leaves(to_dict(theirs))
            refuse_changes("Pretrain", "run", written, there, ours, FREE.__contains__)
        else:
            self._write(written.name, to_yaml(config))

    def _has_steps(self) -> bool:
        """Whether there is a step to keep; a run that failed before its first step may start with another config."""
        logged = self.metrics.is_file() and self.metrics.stat().st_size > 0
        saved = any(self.checkpoints.glob("step-*"))
        return logged or saved or (self.path / "finished.json").is_file()

    def _write(self, name: str, text: str) -> None:
        with explain_disk(self.path):
            replace_file(self.path / name, text.encode())


def take_folder(owner: str, what: str, path: Path, plan: str, lock: FileLock) -> None:
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
) -> None:
    """Refuse to resume what is in a folder with other settings (by dotted name) than it was started with.

    `written` holds theirs; those that are free may change between two starts; `more` says what else differs.
    """
    different = [
        f"{key}: {theirs.get(key)} there, {ours.get(key)} here"
        for key in dict.fromkeys([*theirs, *ours])
        if not is_free(key) and theirs.get(key) != ours.get(key)
    ]
    if different := [*more, *different]:
        more = [f"and {len(different) - 20} more"] if len(different) > 20 else []
        lines = "".join(f"\n  {line}" for line in [*different[:20], *more])
        raise ValueError(
            f"{owner}.out must hold no {what} of another config; got {written.parent}, which differs in:{lines}\n"
            f"Choose another folder, or resume with the settings in {written}."
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
