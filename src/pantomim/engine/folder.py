"""The run folder: one run, one config, one process group at a time; an unfinished one is gone on with."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout

from pantomim.config import Pretrain, from_yaml, is_of_earlier_version, leaves, to_dict, to_yaml
from pantomim.core.files import replace_file
from pantomim.engine.runtime import on_main
from pantomim.engine.stops import explain_disk

# What may change between two starts of a run: how it is carried out, not what is learned (but for rounding).
FREE = frozenset(
    {
        "data.workers",
        "data.memory_gib",
        "runtime.accumulation",
        "runtime.compile",
        "runtime.device",
        "runtime.keep",
        "runtime.log_every",
        "runtime.precision",  # what it comes to on this device is compared: see `describe`
        "runtime.save_every",
        "runtime.threads",
        "runtime.tracker",
    }
)
PACKAGES = ("pantomim", "torch", "torchvision", "accelerate", "numpy", "pillow", "safetensors", "timm")


class RunInUseError(OSError):
    """Another process holds the run folder."""


@dataclass(frozen=True)
class Finished:
    """What a complete run says of itself, in `finished.json` (without the last entry).

    Args:
        steps: Steps trained.
        wall_s: Training time over all starts of the run, without work that was lost.
        images_per_s: Mean speed, without the first step after each start; None in runs of one step.
        loss: Of the last step; None in a run of none.
        broken: Names of the images that were skipped, as far as they were met since the last start.
        alarms: What the method found wrong since the last start.
        already: The run was complete before; it has been left as it was.
    """

    steps: int
    wall_s: float
    images_per_s: float | None
    loss: float | None
    broken: list[str] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)
    already: bool = False


class RunFolder:
    """Where a run writes; see `hold`.

    Args:
        path: The folder; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self._lock = FileLock(path / ".lock", timeout=0)

    @contextmanager
    def hold(self, accelerator: Accelerator, config: Pretrain) -> Iterator[None]:
        """Make the folder, or take up the run in it; nobody else can while the context lasts.

        Raises:
            ValueError: if the folder cannot be made, holds something else, or the run of another config.
            DiskError: if nothing can be written into it.
            RunInUseError: if another process holds it.
        """
        try:
            on_main(accelerator, lambda: self._take_up(config))
            yield
        finally:
            self._lock.release()

    def finished(self) -> Finished | None:
        """What the run said at its end, if it has come to it."""
        try:
            return Finished(**json.loads((self.path / "finished.json").read_text(encoding="utf-8")), already=True)
        except FileNotFoundError:
            return None

    def finish(self, finished: Finished) -> None:
        """Write `finished.json`: the run is complete."""
        values = {key: value for key, value in asdict(finished).items() if key != "already"}
        self._write("finished.json", json.dumps(values, indent=2) + "\n")

    def describe(self, config: Pretrain, accelerator: Accelerator, dtype: torch.dtype, step: int) -> None:
        """Write `environment.json` at the first start; later starts are added to its list `resumed`.

        Raises:
            ValueError: if the steps so far were computed in another number type.
        """
        path = self.path / "environment.json"
        now = environment(config.runtime.seed, accelerator, dtype)
        if step > 0 and path.is_file():
            first = json.loads(path.read_text(encoding="utf-8"))
            if (begun := first.get("precision", now["precision"])) != now["precision"]:
                raise ValueError(
                    f"RuntimeConfig.precision must stay that of the first {step} steps, {begun}; got "
                    f"{config.runtime.precision}, which is {now['precision']} on {now['device']}. "
                    f"Give --runtime.precision {begun}, or another --out."
                )
            now = {**first, "resumed": [*first.get("resumed", []), {"step": step, **now}]}
        self._write(path.name, json.dumps(now, indent=2) + "\n")

    def _take_up(self, config: Pretrain) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._refuse_other_folders()
            self._lock.acquire()
        except Timeout:
            raise RunInUseError(
                f"Pretrain.out must not be in use; got {self.path}, which another pantomim process is working on. "
                f"Wait for it, or give another --out."
            ) from None
        except OSError as error:
            raise ValueError(
                f"Pretrain.out must be a folder that can be written to; got {self.path} ({error.strerror or error}). "
                f"Give another --out."
            ) from error
        written = self.path / "config.yaml"
        theirs = from_yaml(Pretrain, written) if written.is_file() else None
        if theirs is not None and self._has_begun():
            if is_of_earlier_version(written):
                raise ValueError(
                    f"Pretrain.out must hold no run of an earlier version, which cannot be resumed; got {self.path}. "
                    f"Give another --out."
                )
            self._refuse_other_configs(config, theirs)
        else:
            self._write(written.name, to_yaml(config))

    def _has_begun(self) -> bool:
        """Whether there is a step to keep; a run that was refused or failed before may be begun with another config."""
        logged = self.metrics.is_file() and self.metrics.stat().st_size > 0
        saved = any(self.checkpoints.glob("step-*"))
        return logged or saved or (self.path / "finished.json").is_file()

    def _refuse_other_folders(self) -> None:
        others = sorted(path.name for path in self.path.iterdir() if not path.name.startswith("."))
        if others and "config.yaml" not in others:
            raise ValueError(
                f"Pretrain.out must be a new folder or that of a run; got {self.path}, which holds "
                f"{', '.join(others[:5])} and no config.yaml. Give another --out."
            )

    def _refuse_other_configs(self, config: Pretrain, written: Pretrain) -> None:
        ours, theirs = leaves(to_dict(config)), leaves(to_dict(written))
        different = [
            f"\n  {key}: {theirs.get(key)} there, {ours.get(key)} here"
            for key in dict.fromkeys([*theirs, *ours])
            if key not in FREE and theirs.get(key) != ours.get(key)
        ]
        if different:
            written_in = self.path / "config.yaml"
            raise ValueError(
                f"Pretrain.out must hold no run of another config; got {self.path}, which differs in:"
                f"{''.join(different)}\nGive another --out, or go on as it was with --config {written_in}."
            )

    def _write(self, name: str, text: str) -> None:
        with explain_disk(self.path):
            replace_file(self.path / name, text.encode())


def environment(seed: int, accelerator: Accelerator, dtype: torch.dtype) -> dict[str, Any]:
    """Everything outside the config that a run depends on: versions, commit, hardware, command."""
    device = accelerator.device
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "seed": seed,
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


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
