"""The machine a run is carried out on: device and processes, precision, compilation, and randomness by the step."""

import atexit
import enum
import importlib.util
import shutil
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from pantomim.config import RuntimeConfig
from pantomim.core.machine import keep_heap
from pantomim.data.dataset import Broken, Dataset
from pantomim.methods.base import Method

T = TypeVar("T")
PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bfloat16_residual": torch.bfloat16,
    "float16": torch.float16,
}
COMPILED_FROM = 500  # steps, with compile "auto": compiling takes as long as some hundred steps of ViT-B on a GPU


class Purpose(enum.IntEnum):
    """What random numbers are for; each purpose has its own stream."""

    WEIGHTS = 0
    DRAW = 1
    FORWARD = 2
    HELD_OUT = 3


def usable_device(owner: str, device: str) -> torch.device:
    """The device of a name (auto: a GPU if there is one); `ValueError` in the owner's name where it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device != "auto" and not there[device]:
        raise ValueError(
            f"{owner}.device must be a device of this machine; got {device}, and torch sees no such GPU. "
            f"Leave it out, or install a torch that supports the GPU."
        )
    return torch.device(next(name for name in there if there[name]) if device == "auto" else device)


def start_accelerator(config: RuntimeConfig, out: Path) -> Accelerator:
    """Devices and processes, as `torchrun` or `accelerate launch` started them, or this process alone.

    Mixed precision is not Accelerate's part here but `autocast`'s: it surrounds the whole call, so that the compiled
    forward stays one graph.
    """
    on_cpu = usable_device("RuntimeConfig", config.device).type == "cpu"
    if config.tracker != "none" and importlib.util.find_spec(config.tracker) is None:
        raise ValueError(
            f"RuntimeConfig.tracker must be installed; got {config.tracker}. "
            f"Run `pip install 'pantomim[{config.tracker}]'`, or use none: metrics.jsonl has the curves."
        )
    log_with = None if config.tracker == "none" else config.tracker
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", log_with=log_with, project_dir=out)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if on_cpu:
        keep_heap()
    atexit.unregister(_dissolve_group)  # once, however many runs there are
    atexit.register(_dissolve_group)
    return accelerator


def end_training(accelerator: Accelerator) -> None:
    """Close what a run writes to; the group of processes stays for the next run, and is dissolved at the exit.

    Accelerate's `end_training` dissolves it at once, and a second group in the same processes may read the addresses of
    the first.
    """
    for tracker in accelerator.trackers:
        tracker.finish()


def _dissolve_group() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def compute_dtype(config: RuntimeConfig, device: torch.device) -> torch.dtype:
    """The number type of the matrix products; float16 has a scaled loss."""
    if config.precision != "auto":
        return PRECISIONS[config.precision]
    if device.type != "cuda":
        return torch.float32
    old = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.float16 if old else torch.bfloat16


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Where matrix products run in `dtype`; weights, sums and losses stay float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def compiles(config: RuntimeConfig, device: torch.device, total: int, gathers: bool) -> bool:
    """Whether a run of `total` steps is compiled; a method that `gathers` talks to other processes in its forward."""
    if config.compile != "auto":
        return config.compile
    can = importlib.util.find_spec("triton") is not None and any(map(shutil.which, ("cc", "gcc", "clang")))
    return device.type == "cuda" and total >= COMPILED_FROM and can and not gathers


def compile_whole(method: Method, backend: str = "inductor") -> None:
    """Compile the whole forward, and networks that draws ask, in place: one graph each, an error rather than a break.

    Shapes are static until one changes, as the lengths of I-JEPA's lists do from step to step.
    """
    for part in (method, *method.asked):
        part.compile(fullgraph=True, backend=backend)


def random_seed(seed: int, step: int, purpose: Purpose, rank: int = 0) -> int:
    """A seed for a generator that is a function of nothing but these four numbers."""
    return int(np.random.SeedSequence([seed, step, purpose, rank]).generate_state(1, np.uint64)[0])


def generator(seed: int, step: int, device: torch.device, purpose: Purpose = Purpose.DRAW) -> torch.Generator:
    """The generator of a step's draws; the same for every process and micro-batch."""
    return torch.Generator(device).manual_seed(random_seed(seed, step, purpose))


def on_main(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """Do something on the main process only; every process gets its result, or its error."""
    if accelerator.num_processes == 1:
        return action()
    outcome: list[T | Exception | None] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = action()
        except Exception as error:  # handed on to all processes, which would otherwise wait for ever
            outcome[1] = error
    broadcast_object_list(outcome)
    if isinstance(outcome[1], Exception):
        raise outcome[1]
    return outcome[0]  # type: ignore[return-value]


def agree(accelerator: Accelerator, here: bool) -> bool:
    """Whether any process says so."""
    if accelerator.num_processes == 1:
        return here
    return bool(accelerator.gather(torch.tensor([here], device=accelerator.device)).any())


def alike(accelerator: Accelerator, what: str, here: int) -> None:
    """Refuse processes that see another checkpoint or other images: they would train apart without a word."""
    found = accelerator.gather(torch.tensor([here], device=accelerator.device)).tolist()
    if len(set(found)) > 1:
        raise ValueError(
            f"Pretrain.{what} must be the same for all processes; got steps or images {found}, by process. Use a "
            f"folder that all machines share, and wait until it shows the same files everywhere."
        )


def gather_broken(accelerator: Accelerator, *datasets: Dataset) -> list[Broken]:
    """The images that any process has skipped, each once."""
    here = {broken.name: broken for dataset in datasets for broken in dataset.broken}
    if accelerator.num_processes == 1:
        return list(here.values())
    everywhere = {broken.name: broken for broken in gather_object(list(here.values()))}
    return [everywhere[name] for name in sorted(everywhere)]


def clip_gradients(parameters: Iterable[nn.Parameter], clip_norm: float | None) -> Tensor:
    """The norm of all gradients together, which are then scaled down to `clip_norm`, if given. No device sync."""
    parameters = list(parameters)
    norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if clip_norm is not None:
        clip_grads_with_norm_(parameters, clip_norm, norm)
    return norm
