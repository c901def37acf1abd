"""What the sections of `gpu.py` measure with: the card and its lock, records, times, and a training step."""

import argparse
import contextlib
import fcntl
import gc
import json
import os
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from flops import work_of
from torch import Tensor, nn

from pantomim.config import OptimConfig, Pretrain, RuntimeConfig
from pantomim.core.batch import Batch
from pantomim.engine.runtime import autocast, clip_gradients, compile_whole, generator, start_accelerator
from pantomim.engine.stops import FiniteWatch
from pantomim.engine.training import Training
from pantomim.methods.base import Method
from pantomim.methods.beit import BEiTConfig
from pantomim.methods.cae import CAEConfig
from pantomim.methods.cmt_mae import CMTMAEConfig
from pantomim.methods.dbot import DBOTConfig
from pantomim.methods.mae import MAEConfig
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.dvae import DVAEEncoder, DVAESizes
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig
from pantomim.targets.tokens import TokenTarget
from pantomim.teachers.choice import TeacherConfig
from pantomim.teachers.mixing import Mixing
from pantomim.tokenizers.dvae import DVAETokenizer
from pantomim.tokenizers.resized import on_grid

STEPS = 100_000  # that a method is told its run has
H100 = (790e12, 3.0e12)  # FLOP/s and bytes/s, where the ceilings were not measured
KINDS = {  # words in the names of kernels
    "attention": ("flash", "fmha", "attention", "cudnn_generated", "sdpa"),
    "product": ("gemm", "cutlass", "nvjet", "xmma", "splitk", "cublas", "addmm", "aten::mm", "bmm"),
    "convolution": ("conv", "implicit", "winograd"),
    "optimiser": ("multi_tensor", "adam", "foreach", "lpnorm"),
    "copy": ("memcpy", "memset", "copy"),
    "compiled": ("triton",),
    "sort": ("sort", "radix", "bitonic"),
}


class Bench:
    """The device, the lock on it, and the file of records."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.dry, self.out = options, options.dry, Path(options.out)
        self.device, self.to_code = torch.device("cpu" if self.dry else "cuda"), not self.dry or options.inductor
        self.runtime = RuntimeConfig(device=self.device.type, precision="bfloat16", tracker="none")
        self.accelerator = start_accelerator(self.runtime, self.out)
        self.section, self.held, self.compile_s = "", 0, 0.0
        self.kept: dict[str, Step] = {}  # compiled, by graph
        self._lock = open(options.lock, "w")  # noqa: SIM115 - held as long as the process

    # ---------------------------------------------------------------------------------------------------- Records
    def write(self, kind: str, **values: Any) -> None:
        """A line that is on disk before anything else happens."""
        line = json.dumps({"kind": kind, "section": self.section, **values}, default=str)
        with open(self.out / "records.jsonl", "a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(line[:2000], flush=True)

    def attempt(self, what: str, action: Callable[[], object]) -> None:
        """What goes wrong is written down and costs nothing else."""
        began = time.time()
        try:
            action()
        except Exception as error:
            text = f"{type(error).__name__}: {str(error)[:500]}"
            self.write("error", what=what, error=text, where=traceback.format_exc()[-1500:])
        finally:
            self.give(everything=True)
            gc.collect()
            if not self.dry:
                torch.cuda.empty_cache()
            self.write("section", what=what, seconds=time.time() - began)

    # ---------------------------------------------------------------------------------------------------- The card
    def take(self) -> None:
        """Wait until nobody else uses the card."""
        if self.held == 0:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.held += 1

    def give(self, everything: bool = False) -> None:
        """Let others use it."""
        if self.held:
            self.held = 0 if everything else self.held - 1
            if self.held == 0:
                self.synchronise()
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def card(self) -> Iterator[None]:
        """Where the card is used."""
        self.take()
        try:
            yield
        finally:
            self.give()

    def synchronise(self) -> None:
        """Wait for the card's work."""
        if not self.dry:
            torch.cuda.synchronize()

    def backend(self, **settings: Any) -> Any:
        """Compiles on the cores while others use the card; what was compiled takes it before it first runs."""
        import torch._functorch.config

        torch._functorch.config.force_non_lazy_backward_lowering = True  # backward is compiled with forward

        def compiled(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
            began = time.time()
            made: Any = graph
            if self.to_code:
                from torch._inductor.compile_fx import compile_fx

                made = compile_fx(graph, inputs, config_patches=settings or None)
            self.compile_s += time.time() - began
            self.take()
            return made

        return compiled

    # ------------------------------------------------------------------------------------------------------- Times
    def measure(
        self, step: Callable[[], object], seconds: float = 1.0, least: int = 6, most: int = 40
    ) -> dict[str, float]:
        """Median, least and most milliseconds on the card, and those that the host takes to issue a step."""
        least, most, warm = (2, 2, 1) if self.dry else (least, most, 3)
        for _ in range(warm):
            step()
        self.synchronise()
        began = time.perf_counter()
        step()
        self.synchronise()
        count = max(least, min(most, int(seconds / (time.perf_counter() - began))))
        issued, marks = [], [self._mark()]
        for _ in range(count):
            began = time.perf_counter()
            step()
            issued.append(time.perf_counter() - began)
            marks.append(self._mark())
        self.synchronise()
        pairs = pairwise(marks)
        ms = [1e3 * (b - a) if self.dry else a.elapsed_time(b) for a, b in pairs]
        return {"ms": statistics.median(ms), "least_ms": min(ms), "most_ms": max(ms), "issue_ms": 1e3 * min(issued)}

    def _mark(self) -> Any:
        if self.dry:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def product(self, size: int, dtype: torch.dtype = torch.bfloat16, seconds: float = 0.1) -> float:
        """TFLOP/s of a square product, now."""
        size = 128 if self.dry else size
        left, right = (torch.randn(size, size, device=self.device, dtype=dtype) for _ in range(2))
        return 2 * size**3 / self.measure(lambda: left @ right, seconds)["ms"] / 1e9

    def reads(self, step: Callable[[], object]) -> list[str]:
        """Where one step waits for the card."""
        if self.dry:
            return []
        self.synchronise()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message).lower()]

    def step(self, step: Callable[[], object], what: str, mode: str, batch: int, of: str = "", **more: Any) -> None:
        """Time a step, with the card in hand, and write it down beside the bound of the method that it is `of`."""
        if not self.dry:
            torch.cuda.reset_peak_memory_stats()
        ceiling, found = self.product(8192), self.measure(step, 2.0)
        rate, waits = batch / found["ms"] * 1e3, self.reads(step)
        values: dict[str, Any] = {"images_s": rate, **found, "syncs": len(waits), "sync_at": waits[:8]}
        if not self.dry:
            values["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if not self.dry and (work := work_of(of or what)) is not None:
            values["mfu"] = work.flops * rate / ceiling / 1e12
            values["of_bound"] = rate / work.rate(*self.ceilings())
        if self.compile_s and not mode.startswith("eager"):
            values["compile_s"] = self.compile_s
        self.write("step", what=what, mode=mode, batch=batch, **values, **more)

    def part(self, what: str, step: Callable[[], object], images: int | None = None, **more: Any) -> None:
        """Time a part by itself and write it down."""
        found = self.measure(step, 0.4)
        rate = {} if images is None else {"images_s": images / found["ms"] * 1e3}
        self.write("part", what=what, ms=found["ms"], issue_ms=found["issue_ms"], **rate, **more)

    def ceilings(self) -> tuple[float, float]:
        """FLOP/s of a bf16 product and bytes/s of a copy, as `probe` found them."""
        with open(self.out / "records.jsonl") as lines:
            for record in map(json.loads, lines):
                if record["kind"] == "machine":
                    return record["bfloat16_tflops"] * 1e12, record["copy_tb_s"] * 1e12
        return H100

    def kernels(self, step: Callable[[], object], what: str, steps: int = 2) -> None:
        """The kernels that take longest, and the time by kind."""
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        on_card = [] if self.dry else [ProfilerActivity.CUDA]
        step()
        self.synchronise()
        with profile(activities=[ProfilerActivity.CPU, *on_card]) as found:
            for _ in range(steps):
                step()
            self.synchronise()
        rows = []
        for event in found.key_averages():
            us = event.self_cpu_time_total if self.dry else event.self_device_time_total
            if event.device_type == (DeviceType.CPU if self.dry else DeviceType.CUDA) and us > 0:
                rows.append((us / 1e3 / steps, event.count // steps, event.key[:110]))
        rows.sort(reverse=True)
        kinds: Counter[str] = Counter()
        for ms, _, name in rows:
            words = name.lower()
            kinds[next((kind for kind, of in KINDS.items() if any(word in words for word in of)), "other")] += ms
        top = [dict(zip(("ms", "count", "name"), row, strict=True)) for row in rows[:15]]
        whole = {"launches": sum(row[1] for row in rows), "ms": sum(row[0] for row in rows)}
        self.write("kernels", what=what, **whole, kinds=dict(kinds.most_common()), top=top)


class Step:
    """The engine's own training step, on two batches of random images that lie on the card."""

    def __init__(self, bench: Bench, method: Method, batch_size: int) -> None:
        self.bench, self.method, self.number = bench, method.to(bench.device), 1
        self.images = 4 if bench.dry else batch_size
        config = Pretrain("gpu", optim=OptimConfig(), batch_size=self.images, runtime=bench.runtime)
        self.training = Training(config, method, STEPS, 0, bench.accelerator)
        shape, ids = method.requirements.image_size, torch.arange(self.images, device=bench.device)
        self.batches = [
            Batch(torch.rand(self.images, 3, *shape, device=bench.device), ids, total=self.images) for _ in range(2)
        ]
        self.watch = FiniteWatch(bench.device)

    def __call__(self) -> dict[str, Tensor]:
        """As in `engine.pretrain`."""
        self.number += 1
        means = self.training.step(self.number, [self.batches[self.number % 2]])
        self.watch.see(self.number, means["loss"], means["grad_norm"])
        return means

    def compile(self, **settings: Any) -> "Step":
        """Compile forward and backward by a first step; the card is taken for its draws, and when it is compiled."""
        bench, draw = self.bench, self.method.draw
        torch._dynamo.reset()  # or shapes of the one before would make this one's dynamic

        def drawn(*args: Any) -> Any:
            bench.take()
            try:
                return draw(*args)
            finally:
                bench.give(everything=True)  # guides that were compiled took it, too

        bench.compile_s, self.method.draw = 0.0, drawn  # type: ignore[method-assign]
        compile_whole(self.method, bench.backend(**settings))
        self()
        del self.method.draw
        return self

    @contextlib.contextmanager
    def eager(self, *parts: nn.Module) -> Iterator[None]:
        """Where these parts, else the method and what its draws ask, are not compiled."""
        parts = parts or (self.method, *self.method.asked)
        before = [part._compiled_call_impl for part in parts]
        for part in parts:
            part._compiled_call_impl = None
        try:
            yield
        finally:
            for part, compiled in zip(parts, before, strict=True):
                part._compiled_call_impl = compiled

    def draws(self, number: int = 2) -> Any:
        """All that is random in a step."""
        with autocast(self.bench.device, torch.bfloat16):
            return self.method.draw(self.batches[number % 2], number, generator(0, number, self.bench.device))

    def loss(self, draws: Any, dtype: torch.dtype = torch.bfloat16, number: int = 2) -> Tensor:
        """Of a batch, with the same stochastic depth each time."""
        torch.manual_seed(0)
        with autocast(self.bench.device, dtype):
            return self.method(self.batches[number % 2], draws)["loss"]

    def gradients(self, draws: Any, dtype: torch.dtype) -> tuple[float, Tensor]:
        """The loss, and all gradients in a row."""
        self.training.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(draws, dtype)
        loss.backward()
        found = [weight.grad.flatten().float() for weight in self.method.parameters() if weight.grad is not None]
        self.training.optimizer.zero_grad(set_to_none=True)
        return float(loss), torch.cat(found)

    def parts(self, what: str) -> None:
        """Draws, forward and backward, norm, optimiser and moving averages, each by itself."""
        bench, draws, optimizer = self.bench, self.draws(), self.training.optimizer
        bench.part(f"{what}: draws", self.draws)
        bench.part(f"{what}: forward and backward", lambda: self.loss(draws).backward())
        bench.part(f"{what}: norm of gradients", lambda: clip_gradients(self.method.parameters(), None))
        bench.part(f"{what}: optimiser", optimizer.step)
        optimizer.zero_grad(set_to_none=True)
        bench.part(f"{what}: moving averages", lambda: self.method.update_ema(1))


# --------------------------------------------------------------------------------------------------------- The methods
GUIDED = CMTMAEConfig(teacher=TeacherConfig("random", output="norm"), mixing=Mixing(warmup_share=0.0))
CONFIGS: dict[str, Any] = {  # at their papers' sizes
    "mae-B": MAEConfig(),
    "mae-L": MAEConfig(encoder=EncoderConfig(**ENCODER_SIZES["large"])),
    "beit-B": BEiTConfig(),
    "cae-B": CAEConfig(),
    "dbot-B": DBOTConfig(),
    "cmt_mae-B": GUIDED,
    "mae 192 x 12": MAEConfig(  # of the CIFAR-10 recipes
        encoder=EncoderConfig(image_size=(32, 32), patch_size=4, **ENCODER_SIZES["tiny"]),
        decoder=DecoderConfig(width=128, depth=4, heads=4),
    ),
}


def build(bench: Bench, what: str, depth: int | None = None) -> Method:
    """A method on random weights; with `depth` of so many blocks and without stochastic depth. No file is read."""
    sizes: dict[str, Any] = {} if depth is None else {"depth": depth, "drop_path": 0.0}
    config, tokenizer = CONFIGS[what], DVAESizes()
    encoder, parts = replace(config.encoder, **sizes), {}
    if bench.dry:
        sizes, tokenizer = {"depth": 1}, DVAESizes(width=8, vocabulary=64, blocks=1)
        encoder = replace(encoder, image_size=(32, 32), patch_size=8, width=16, heads=2, depth=1)
    if hasattr(config, "decoder"):
        narrow = {"width": 16, "heads": 2} if bench.dry and hasattr(config.decoder, "width") else {}
        parts["decoder"] = replace(config.decoder, **sizes, **narrow)
    if hasattr(config, "regressor"):
        parts["regressor"] = replace(config.regressor, **sizes)
    torch.manual_seed(0)
    config, given = replace(config, encoder=encoder, **parts), {}
    if config.kind in ("beit", "cae"):
        network = DVAETokenizer(DVAEEncoder(tokenizer), float16=True)  # as by default on a GPU
        given["target"] = TokenTarget(on_grid(network, encoder.image_size, encoder.grid))
    return config.build(STEPS, **given).to(bench.device).train()


def compiled(bench: Bench, what: str, batch_size: int, change: Any = None, **settings: Any) -> Step:
    """A compiled step, with the card in hand; the one of before, where this process has it."""
    key = f"{what} {batch_size} {change} {settings}"
    if key not in bench.kept:
        bench.kept.clear()  # one at a time fits
        with bench.card():
            step = Step(bench, build(bench, what), batch_size)
        if change is not None:
            change(step.method)
        bench.kept[key] = step.compile(**settings)
    bench.take()
    return bench.kept[key]


def modules(method: nn.Module, kind: type[nn.Module]) -> list[Any]:
    """The parts of a kind."""
    return [part for part in method.modules() if isinstance(part, kind)]
