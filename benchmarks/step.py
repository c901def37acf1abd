"""Training steps a second of our MAE, of transformers' and of lightly's, beside the bare matrix products of our step.

    .venv/bin/python benchmarks/step.py --size small --rounds 15 --threads 2
    .venv/bin/python benchmarks/step.py --size base --rounds 8 --compile --json out.json
    .venv/bin/python benchmarks/step.py --guided --size small --rounds 15 --threads 2

A step is: draw the masks, forward, backward, optimiser step. All three have the same sizes, the same images, the same
optimiser (fused AdamW, plain settings) and, checked before anything is timed, the same loss and the same gradient norm
on equal weights and masks. They take turns, so that a busy machine hurts them alike, and are compared round by round.
The others get their images normalised beforehand; ours normalises in the step.

With --guided: what CMT-MAE's guiding networks cost. Our MAE takes turns with CMT-MAE of the same sizes: in its second
phase, where teacher and student's copy are both asked, and with the teacher alone. A step then also asks the guides and
moves the copy; what is left out is the look at the guides that a run takes 22 times in all. The teacher is as large as
the student, and random, since weights do not change the time. Beside the times stands the ideal: the operations of a
step's matrix products over MAE's. As in a run, the guides are compiled with --compile, and compute in bf16 on a GPU
where the step does; on a CPU always in float32.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import torch
from flops import MatrixProducts
from rivals import lightly_ids, lightly_mae, transformers_mae
from torch import Tensor

from pantomim.core.batch import Batch
from pantomim.core.mask import Mask
from pantomim.engine.runtime import compile_whole
from pantomim.methods.base import Draws, Method
from pantomim.methods.cmt_mae import CMTMAEConfig
from pantomim.methods.mae import MAEConfig
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.tokens import standardise
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig
from pantomim.teachers.choice import TeacherConfig
from pantomim.teachers.mixing import Mixing

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
STEP, RUN_STEPS = 1, 100_000  # the step that a guided method is told it takes: none in which it looks at its guides


@dataclass
class Contender:
    """Something that can do a step, and what each step took; `flops` where its products were counted."""

    name: str
    step: Callable[[], object]
    flops: int | None = None
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


def training_step(
    model: torch.nn.Module, loss_of: Callable[[], Tensor], setting: Setting, after: Callable[[], object] | None = None
) -> Callable[[], None]:
    """Forward, backward and the optimiser that all of them get; then what else the method does after a step."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)

    def step() -> None:
        with setting.autocast():
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if after is not None:
            after()

    return step


def contenders(config: MAEConfig, batch_size: int, setting: Setting, seed: int) -> list[Contender]:
    """Ours, transformers' and lightly's step and the ceiling, checked to agree and warmed up."""
    device = setting.device
    torch.manual_seed(seed)
    ours = config.build()
    hf, lightly = transformers_mae(ours, config), lightly_mae(ours, config)
    models: dict[str, torch.nn.Module] = {"pantomim": ours, "transformers": hf, "lightly": lightly}
    for model in models.values():
        model.to(device).train()
    generator, batch = batch_on(device, config, batch_size, seed)
    normalised = standardise(batch.images, ours.encoder.mean, ours.encoder.std)

    noise = torch.rand(batch_size, ours.encoder.num_patches, generator=generator, device=device)
    mask = Mask.from_scores(noise, config.masker.num_masked(ours.encoder.grid))
    check_equal(
        {
            "pantomim": (ours, lambda: ours(batch, Draws(mask))["loss"]),
            "transformers": (hf, lambda: hf(normalised, noise=noise).loss),
            "lightly": (lightly, lambda: lightly(normalised, *lightly_ids(mask))),
        }
    )

    losses: dict[str, Callable[[], Tensor]] = {}
    our_forward, hf_forward, lightly_forward = (setting.compile(model) for model in models.values())
    losses["pantomim"] = lambda: our_forward(batch, ours.draw(batch, 0, generator))["loss"]
    losses["transformers"] = lambda: hf_forward(normalised).loss
    losses["lightly"] = lambda: lightly_forward(normalised, *lightly.draw(batch_size, device))

    products = products_of(ours, batch, 0, generator, setting)
    ready = [Contender(name, training_step(models[name], losses[name], setting)) for name in models]
    ready.append(Contender(CEILING, products.replay(device)))
    warm_up(ready, setting)
    return ready


def guided_contenders(config: MAEConfig, batch_size: int, setting: Setting, seed: int) -> list[Contender]:
    """Our MAE's step, CMT-MAE's in its ways, and the ceiling of each, warmed up."""
    generator, batch = batch_on(setting.device, config, batch_size, seed)
    ready, ceilings = [], []
    for name, way in {"MAE": config, **guided_ways(config)}.items():
        torch.manual_seed(seed)
        method = way.build(RUN_STEPS).to(setting.device).train()
        products = products_of(method, batch, STEP, generator, setting)
        ready.append(guided_contender(name, method, batch, generator, setting, products.flops()))
        ceilings.append(Contender(f"{CEILING} of {name}", products.replay(setting.device), products.flops()))
    warm_up(ready + ceilings, setting)
    return ready + ceilings


def guided_ways(config: MAEConfig) -> dict[str, CMTMAEConfig]:
    """CMT-MAE of MAE's sizes: with both guides, and with the teacher alone."""
    both = CMTMAEConfig(
        encoder=config.encoder,
        decoder=config.decoder,
        teacher=TeacherConfig(source="random", output="norm"),
        mixing=Mixing(warmup_share=0.0),
    )
    return {"CMT-MAE": both, "CMT-MAE, teacher alone": replace(both, mixing=Mixing(teacher_weight=1.0))}


def guided_contender(
    name: str, method: Method, batch: Batch, generator: torch.Generator, setting: Setting, flops: int
) -> Contender:
    """A method's step as in a run: the draws, guides included, forward, backward, optimiser, moving averages."""
    if setting.compiled:
        compile_whole(method)
    step = training_step(
        method,
        lambda: method(batch, method.draw(batch, STEP, generator))["loss"],
        setting,
        lambda: method.update_ema(STEP),
    )
    return Contender(name, step, flops)


def batch_on(device: torch.device, config: MAEConfig, batch_size: int, seed: int) -> tuple[torch.Generator, Batch]:
    """A generator, and random images drawn from it."""
    generator = torch.Generator(device).manual_seed(seed)
    images = torch.rand(batch_size, 3, *config.encoder.image_size, generator=generator, device=device)
    return generator, Batch(images, total=batch_size)


def products_of(
    method: Method, batch: Batch, step: int, generator: torch.Generator, setting: Setting
) -> MatrixProducts:
    """Those of one step, from the draws to the gradients."""
    products = MatrixProducts()
    with products, setting.autocast():
        method(batch, method.draw(batch, step, generator))["loss"].backward()
    method.zero_grad()
    return products


def warm_up(ready: list[Contender], setting: Setting) -> None:
    """Steps that are not timed."""
    for contender in ready:
        for _ in range(3 if setting.compiled else 2):
            contender.step()


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
    """Images a second, and how many times as long as ours, the first, each took, round by round.

    Where operations were counted, also their ratio, and the time's over that: 1 is as fast an operation as ours.
    """
    ours, found = ready[0], {}
    for c in ready:
        result: dict[str, Any] = {
            "images_per_s": spread(batch_size / s for s in c.seconds),
            "time_over_ours": spread(s / o for s, o in zip(c.seconds, ours.seconds, strict=True)),
            "cpu_time_over_ours": spread(s / o for s, o in zip(c.cpu_seconds, ours.cpu_seconds, strict=True)),
        }
        if c.flops is not None and ours.flops is not None:
            ideal = c.flops / ours.flops
            result |= {"flops": c.flops, "flops_over_ours": ideal}
            result["time_over_ideal"] = result["time_over_ours"]["median"] / ideal
        found[c.name] = result
    return found


def table(results: dict[str, dict[str, Any]], ours: str) -> str:
    """The summary as Markdown; `ours` is what the others are compared with."""
    counted = all("flops" in result for result in results.values())
    heads = ["", "images/s", f"time / {ours} (quartiles)", f"CPU time / {ours}"]
    heads += [f"operations / {ours} (ideal)", "time / ideal"] if counted else []
    lines = [f"| {' | '.join(heads)} |".replace("|  |", "| |"), "|---" * len(heads) + "|"]
    for name, result in results.items():
        cells = [f"{result['images_per_s']['median']:.1f}"]
        for kind in ("time_over_ours", "cpu_time_over_ours"):
            ratio = result[kind]
            cells.append(f"{ratio['median']:.3f} ({ratio['q1']:.3f} to {ratio['q3']:.3f})")
        if counted:
            cells += [f"{result['flops_over_ours']:.3f}", f"{result['time_over_ideal']:.3f}"]
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
    parser.add_argument("--compile", action="store_true", help="torch.compile for all methods")
    parser.add_argument("--guided", action="store_true", help="CMT-MAE beside our MAE, in place of the others' MAE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="also write everything, with every single time, to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    bf16 = device.type == "cuda" if options.bf16 is None else options.bf16
    setting = Setting(device, bf16, options.compile)
    config, batch_size = SIZES[options.size]
    batch_size = options.batch_size or batch_size

    make = guided_contenders if options.guided else contenders
    ready = make(config, batch_size, setting, options.seed)
    measure(ready, options.rounds, setting)
    results = summary(ready, batch_size)
    print(f"{options.size}: {sizes_in_words(config)}, batch {batch_size}")
    how = ["compiled" if setting.compiled else "eager", "bf16" if bf16 else "float32", str(device)]
    print(", ".join([*how, f"{options.threads} threads", f"{options.rounds} rounds"]))
    print(table(results, "MAE" if options.guided else "ours"))
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
