"""How long a run takes: by steps that are really made, or by FLOPs and how fast this device multiplies matrices."""

import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pantomim.config import Pretrain
from pantomim.core.progress import about, report
from pantomim.engine.record import peak_memory_gib
from pantomim.engine.runtime import Purpose, agree, compiles, on_main, random_seed, start_accelerator
from pantomim.engine.setup import check_fit, in_steps, open_images, stream_opener
from pantomim.engine.stops import explain_memory
from pantomim.engine.training import Training

MOST_S = 30.0
WARM_UP = 2  # steps: memory is taken, workers start
FEW = 32  # images that are tried first where a batch has more
SIDE = 1024  # of the square matrices whose product is timed
REACHED = 0.4  # of the speed of that product, by steps of small transformers on a CPU (docs/results/timing.md)
BFLOAT16_GAINS = "steps were 1.65 times as fast at ViT-B, 1.09 at 192 x 12 (one core, Zen 4 with AVX512_BF16)"
BESIDE = 1.05  # held-out images, logging and checkpoints, over the steps alone


@dataclass(frozen=True)
class Timing:
    """Steps that were timed, reading images included, and what follows for the whole run."""

    steps: int  # that were timed, after the first few
    s_per_step: float
    start_s: float  # opening, building, the first steps
    total: int  # steps of the whole run
    memory_gib: float | None  # the most of this process so far
    share: float = 1.0  # of the batch, where a whole step takes too long to be timed

    @property
    def run_s(self) -> float:
        """Of the whole run."""
        return self.start_s + self.total * self.s_per_step * BESIDE

    def steps_within(self, seconds: float) -> int:
        """So many fit into this time, counted from the end of the timing: the run starts anew."""
        return max(1, int((seconds - self.start_s) / (self.s_per_step * BESIDE)))

    def __str__(self) -> str:
        part = "" if self.share == 1 else f", each of {self.share:.3g} of the batch, and scaled up"
        took = about(self.steps * self.s_per_step * self.share)
        return f"{self.s_per_step:.3g} s a step: {self.steps} steps in {took}{part}"


def time_steps(config: Pretrain, seconds: float = MOST_S) -> Timing:
    """Make the first steps of a run for at most so long, or one step; nothing is kept of it.

    On a CPU a step that takes longer than a sixth of that is made of a part of the batch, and scaled up.
    """
    begin = time.perf_counter()
    accelerator = start_accelerator(replace(config.runtime, tracker="none"), Path())
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    images = open_images(config)
    total, warmup = in_steps(config, max(1, len(images.train) // config.batch_size))
    torch.manual_seed(random_seed(config.runtime.seed, 0, Purpose.WEIGHTS))
    method = config.method.build(total if config.optim.stretch == 1 else config.optim.stretch * total)
    check_fit(config, images.train, method.requirements, world, images.masks)
    opener = stream_opener(config, method.requirements, images.masks, device, rank, world)
    training = Training(config, method.to(device), total, warmup, accelerator)
    training.share_out()
    size, micro = config.batch_size, config.runtime.accumulation
    compiled = device.type == "cuda" and compiles(config.runtime, device, total, False)
    how = {"micro": micro, "repeats": config.data.repeats, "compiled": compiled}

    opened_s = time.perf_counter() - begin

    def steps(batch_size: int, least: int, limit_s: float) -> list[float]:
        """What each took, for so long and at least so many."""
        stream, took = opener(images.train, batch_size=batch_size, **how), list[float]()
        with (
            explain_memory(config, world, method.requirements),
            closing(stream.batches(0, max(total, least))) as batches,
        ):
            first = last = time.perf_counter()
            for step, batch in enumerate(batches):
                training.step(min(step, max(total - 1, 0)), batch)
                if device.type != "cpu":
                    torch.accelerator.synchronize()
                now = time.perf_counter()
                took.append(now - last)
                last = now
                report("timing steps", min(now - first, limit_s), limit_s)
                if agree(accelerator, len(took) >= least and now + took[-1] > first + limit_s):
                    break
        return took

    if device.type == "cpu" and world == 1:
        while size > FEW * micro and size % (4 * micro) == 0:
            size //= 2
        longest = seconds / 6
        if size < config.batch_size:
            small_s = min(steps(size, 2, longest))
            while size < config.batch_size and 2 * small_s <= longest:
                size, small_s = 2 * size, 2 * small_s
    took, share = steps(size, WARM_UP + 1, seconds), size / config.batch_size
    timed = took[WARM_UP:]
    start_s = opened_s + took[0] / share
    return Timing(len(timed), sum(timed) / len(timed) / share, start_s, total, peak_memory_gib(device), share)


def steps_that_fit(config: Pretrain, seconds: float, runs: int) -> tuple[int, Timing]:
    """How many steps each of some runs has within so long altogether, timing and starts included; at least one.

    Of several processes the first one's clock counts: they must agree on the length.
    """
    begin = time.perf_counter()
    timing = time_steps(config, min(MOST_S, seconds / 10))
    accelerator = start_accelerator(replace(config.runtime, tracker="none"), Path())
    left_s = (seconds - (time.perf_counter() - begin)) / runs
    return on_main(accelerator, lambda: timing.steps_within(left_s)), timing


def bfloat16_advice(device: torch.device, dtype: torch.dtype) -> str | None:
    """What a run in float32 on a CPU with a unit for bfloat16 could gain; None: nothing."""
    units = {
        "AVX512_BF16": torch.cpu._is_avx512_bf16_supported,
        "AMX": torch.cpu._is_amx_tile_supported,
    }
    if device.type != "cpu" or dtype != torch.float32:
        return None
    if (unit := next((name for name, is_there in units.items() if is_there()), None)) is None:
        return None
    return f"runtime.precision bfloat16, for which this CPU has {unit}: {BFLOAT16_GAINS}"


def matrix_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """The speed of the best of some products of two square matrices of `SIDE`."""
    left, right = (torch.rand(SIDE, SIDE, device=device).to(dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + 0.3
    while best == float("inf") or time.perf_counter() < end:
        begin = time.perf_counter()
        product = left @ right
        if device.type != "cpu":
            torch.accelerator.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 2 * product.numel() * SIDE / best
