"""Training steps a second of our MAE, of transformers' and of lightly's, beside the bare matrix products of our step.

    .venv/bin/python benchmarks/step.py --size small --rounds 15 --threads 2
    .venv/bin/python benchmarks/step.py --size base --rounds 8 --compile --json out.json

A step is: draw the masks, forward, backward, optimiser step. All three have the same sizes, the same images, the same
optimiser (fused AdamW, plain settings) and, checked before anything is timed, the same loss and the same gradient norm
on equal weights and masks. They take turns, so that a busy machine hurts them alike, and are compared round by round.
The others get their images normalised beforehand; ours normalises in the step.
"""

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from rivals import lightly_ids, lightly_mae, transformers_mae
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pantomim.masking.mask import Mask
from pantomim.methods.base import Batch
from pantomim.methods.mae import MAEConfig, MAEDraws
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.tokens import standardise
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig

SIZES = {
    "micro": (  # for a quick look at the script itself
        MAEConfig(
            encoder=EncoderConfig(image_size=(32, 32), patch_size=8, **ENCODER_SIZES["micro"]),
            decoder=DecoderConfig(width=64, depth=2, heads=2),
        ),
        16,
    ),
    "small": (
        MAEConfig(
            encoder=EncoderConfig(image_size=(32, 32), patch_size=4, **ENCODER_SIZES["tiny"]),
            decoder=DecoderConfig(width=128, depth=4, heads=4),
        ),
        128,
    ),
    "base": (
        MAEConfig(
            encoder=EncoderConfig(image_size=(224, 224), patch_size=16, **ENCODER_SIZES["base"]),
            decoder=DecoderConfig(width=512, depth=8, heads=16),
        ),
        8,
    ),
}
CEILING = "matrix products"


@dataclass
class Contender:
    """Something that can do a step, and what each step took."""

    name: str
    step: Callable[[], object]
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)  # of all threads: steadier where others use the machine

    def time(self, synchronise: Callable[[], object]) -> None:
        """One step."""
        synchronise()
        start, cpu_start = time.perf_counter(), time.process_time()
        self.step()
        synchronise()
        self.seconds.append(time.perf_counter() - start)
        self.cpu_seconds.append(time.process_time() - cpu_start)


@dataclass
class Setting:
    """Where and how everything runs."""

    device: torch.device
    bf16: bool
    compiled: bool

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def autocast(self) -> torch.autocast:
        """bf16 where asked for."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, compiled whole with static shapes if asked for."""
        return torch.compile(function, fullgraph=True, dynamic=False) if self.compiled else function


def training_step(model: torch.nn.Module, loss_of: Callable[[], Tensor], setting: Setting) -> Callable[[], None]:
    """Forward, backward and the optimiser that all of them get."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)

    def step() -> None:
        with setting.autocast():
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


class MatrixProducts(TorchDispatchMode):
    """Counts the matrix products (and attentions, as products) that run inside it, by operand shapes and strides."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Note the operands, then run as ever."""
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm"):
            self._note(*args[:2])
        elif name in ("addmm", "baddbmm"):
            self._note(*args[1:3])
        elif "scaled_dot_product" in name:
            backward = name.endswith("backward")
            query, key = args[1:3] if backward else args[:2]
            self._attention(query, key, backward)
        return func(*args, **(kwargs or {}))

    def _note(self, left: Tensor, right: Tensor) -> None:
        self.found[tuple((tuple(t.shape), tuple(t.stride())) for t in (left, right))] += 1

    def _attention(self, query: Tensor, key: Tensor, backward: bool) -> None:
        """Two products forward, four backward; what a kernel computes again is not counted."""
        groups, (queries, width), keys = query.shape[0] * query.shape[1], query.shape[2:], key.shape[2]
        ours = torch.empty(groups, queries, width, device="meta")
        others = torch.empty(groups, keys, width, device="meta")
        scores = torch.empty(groups, queries, keys, device="meta")
        self._note(ours, others.mT)  # the scores; backward, the gradient of the weights
        self._note(scores, others)  # the mixture; backward, the gradient of the queries
        if backward:
            self._note(scores.mT, ours)  # the gradient of the keys
            self._note(scores.mT, ours)  # the gradient of the values

    def replay(self, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
        """The same products on tensors of their own, and nothing else."""
        products = []
        for operands, count in self.found.items():
            left, right = (torch.empty_strided(*o, dtype=dtype, device=device).normal_() for o in operands)
            out = left @ right
            products.append((torch.mm if left.dim() == 2 else torch.bmm, left, right, out, count))

        def run() -> None:
            for product, left, right, out, count in products:
                for _ in range(count):
                    product(left, right, out=out)

        return run

    def flops(self) -> int:
        """Multiplications and additions of all of them."""
        return sum(2 * n * math.prod(left[0]) * right[0][-1] for (left, right), n in self.found.items())


def contenders(config: MAEConfig, batch_size: int, setting: Setting, seed: int) -> list[Contender]:
    """Ours, transformers' and lightly's step and the ceiling, checked to agree and warmed up."""
    device = setting.device
    torch.manual_seed(seed)
    ours = config.build()
    hf, lightly = transformers_mae(ours, config), lightly_mae(ours, config)
    models: dict[str, torch.nn.Module] = {"pantomim": ours, "transformers": hf, "lightly": lightly}
    for model in models.values():
        model.to(device).train()
    generator = torch.Generator(device).manual_seed(seed)
    images = torch.rand(batch_size, 3, *config.encoder.image_size, generator=generator, device=device)
    normalised = standardise(images, ours.encoder.mean, ours.encoder.std)
    batch = Batch(images, total=batch_size)

    noise = torch.rand(batch_size, ours.encoder.num_patches, generator=generator, device=device)
    mask = Mask.from_scores(noise, config.masker.num_masked(ours.encoder.grid))
    check_equal(
        {
            "pantomim": (ours, lambda: ours(batch, MAEDraws(mask))["loss"]),
            "transformers": (hf, lambda: hf(normalised, noise=noise).loss),
            "lightly": (lightly, lambda: lightly(normalised, *lightly_ids(mask))),
        }
    )

    losses: dict[str, Callable[[], Tensor]] = {}
    our_forward, hf_forward, lightly_forward = (setting.compile(model) for model in models.values())
    losses["pantomim"] = lambda: our_forward(batch, ours.draw(batch, 0, generator))["loss"]
    losses["transformers"] = lambda: hf_forward(normalised).loss
    losses["lightly"] = lambda: lightly_forward(normalised, *lightly.draw(batch_size, device))

    products = MatrixProducts()
    with products, setting.autocast():
        ours(batch, ours.draw(batch, 0, generator))["loss"].backward()
    ours.zero_grad()
    dtype = torch.bfloat16 if setting.bf16 else torch.float32
    ready = [Contender(name, training_step(models[name], losses[name], setting)) for name in models]
    ready.append(Contender(CEILING, products.replay(device, dtype)))
    for contender in ready:
        for _ in range(3 if setting.compiled else 2):
            contender.step()
    return ready


def check_equal(losses: dict[str, tuple[torch.nn.Module, Callable[[], Tensor]]]) -> None:
    """Same loss and gradient norm for all, in float32, or nothing is timed."""
    found = {}
    for name, (model, loss_of) in losses.items():
        with torch.backends.cudnn.flags(allow_tf32=False):  # convolutions would round to TF32 on a GPU
            loss = loss_of()
            loss.backward()
        norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        found[name] = torch.stack([loss.detach(), torch.stack(norms).norm()])
        model.zero_grad(set_to_none=True)
    for name, values in found.items():
        torch.testing.assert_close(values, found["pantomim"], rtol=2e-5, atol=0, msg=lambda m, n=name: f"{n}: {m}")
    loss, norm = found["pantomim"].tolist()
    print(f"equal on equal weights and masks: loss {loss:.6f}, gradient norm {norm:.6f}")


def measure(ready: list[Contender], rounds: int, setting: Setting) -> None:
    """Rounds in which each does one step; who begins changes from round to round."""
    for round_ in range(rounds):
        for offset in range(len(ready)):
            ready[(round_ + offset) % len(ready)].time(setting.synchronise)


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(list(values), n=4, method="inclusive")
    return {"median": middle, "q1": low, "q3": high}


def summary(ready: list[Contender], batch_size: int) -> dict[str, dict[str, Any]]:
    """Images a second, and how many times as long as ours each took, round by round."""
    ours = ready[0]
    return {
        c.name: {
            "images_per_s": spread(batch_size / s for s in c.seconds),
            "time_over_ours": spread(s / o for s, o in zip(c.seconds, ours.seconds, strict=True)),
            "cpu_time_over_ours": spread(s / o for s, o in zip(c.cpu_seconds, ours.cpu_seconds, strict=True)),
        }
        for c in ready
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """The summary as Markdown."""
    lines = ["| | images/s | time / ours (quartiles) | CPU time / ours |", "|---|---|---|---|"]
    for name, result in results.items():
        cells = [f"{result['images_per_s']['median']:.1f}"]
        for kind in ("time_over_ours", "cpu_time_over_ours"):
            ratio = result[kind]
            cells.append(f"{ratio['median']:.3f} ({ratio['q1']:.3f} to {ratio['q3']:.3f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Check, time, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small", help="small: 192 x 12, 32 px; base: ViT-B/16, 224 px")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch-size", type=int, help="default: 128 for small, 8 for base")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, help="default: on CUDA only")
    parser.add_argument("--compile", action="store_true", help="torch.compile for all three")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="also write everything, with every single time, to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    bf16 = device.type == "cuda" if options.bf16 is None else options.bf16
    setting = Setting(device, bf16, options.compile)
    config, batch_size = SIZES[options.size]
    batch_size = options.batch_size or batch_size

    ready = contenders(config, batch_size, setting, options.seed)
    measure(ready, options.rounds, setting)
    results = summary(ready, batch_size)
    print(f"{options.size}: {sizes_in_words(config)}, batch {batch_size}")
    how = ["compiled" if setting.compiled else "eager", "bf16" if bf16 else "float32", str(device)]
    print(", ".join([*how, f"{options.threads} threads", f"{options.rounds} rounds"]))
    print(table(results))
    if options.json:
        record = {
            "command": sys.argv,
            "machine": {"platform": platform.platform(), "device": device_name(device), "threads": options.threads},
            "versions": {name: version(name) for name in ("torch", "transformers", "lightly", "timm", "pantomim")},
            "sizes": sizes_in_words(config),
            "batch_size": batch_size,
            "bf16": bf16,
            "compiled": setting.compiled,
            "results": results,
            "seconds": {c.name: c.seconds for c in ready},
            "cpu_seconds": {c.name: c.cpu_seconds for c in ready},
        }
        with open(options.json, "w") as file:
            json.dump(record, file, indent=1)


def sizes_in_words(config: MAEConfig) -> str:
    """What is compared."""
    encoder, decoder = config.encoder, config.decoder
    return (
        f"encoder {encoder.width} wide, {encoder.depth} deep, {encoder.heads} heads, patch {encoder.patch_size} at "
        f"{encoder.image_size[0]}; decoder {decoder.width} wide, {decoder.depth} deep, {decoder.heads} heads"
    )


def device_name(device: torch.device) -> str:
    """Of the GPU or the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with open("/proc/cpuinfo") as lines:
        return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")


if __name__ == "__main__":
    main()
