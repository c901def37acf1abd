"""A step of fine-tuning by our engine, beside a plain loop on timm's model of the same network; they take turns.

    .venv/bin/python benchmarks/finetune.py --size tiny --rounds 15 --threads 2
    .venv/bin/python benchmarks/finetune.py --size base --image-size 224 --patch-size 16 --batch-size 64 --json out.json

A step is: mix images and labels, forward with stochastic depth, loss, backward, gradient norm, fused AdamW with the
same groups by layer. The other side is what a user of timm writes: timm's `VisionTransformer`, its `Mixup`, its
`param_groups_layer_decay`, autocast where ours has it. Equal logits on equal weights are checked before anything is
timed. Reported is the ratio of our time to timm's, round by round: its median, and the middle half of the rounds.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from timm.data.mixup import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from torch import nn

from pantomim.config import Duration, OptimConfig, Pretrain, RuntimeConfig
from pantomim.core.batch import Batch
from pantomim.engine.runtime import autocast, start_accelerator
from pantomim.engine.training import Training
from pantomim.formats.native import timm_arguments
from pantomim.methods.supervised import Supervised, SupervisedConfig
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig

DECAY, LR, WEIGHT_DECAY = 0.65, 1e-4, 0.05


def main() -> None:
    """Time both in turns and print the ratio."""
    options = parse()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    side = options.image_size
    encoder = EncoderConfig((side, side), options.patch_size, drop_path=0.1, **ENCODER_SIZES[options.size])
    config = SupervisedConfig(encoder=encoder, num_classes=options.classes, pool="mean", head_init="deit")
    method = config.build()
    model = VisionTransformer(**timm_arguments(encoder, "mean", options.classes))
    model.load_state_dict({name.removeprefix("encoder."): w for name, w in method.model.state_dict().items()})
    method.to(device), model.to(device)
    images = torch.rand(options.batch_size, 3, side, side, device=device)
    labels = torch.randint(options.classes, (options.batch_size,), device=device)
    check_equal(method, model, images, encoder)

    sides = {"ours": ours(method, config, images, labels, options), "timm": timms(model, images, labels, options)}
    for step in sides.values():  # warm-up: allocations, and compilation where asked for
        for _ in range(3):
            step()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(options.rounds):
        for name in sorted(sides, reverse=bool(number % 2)):
            times[name].append(timed(sides[name], options.steps, device))
    ratios = sorted(a / b for a, b in zip(times["ours"], times["timm"], strict=True))
    quarter = len(ratios) // 4
    found = {
        "ratio": statistics.median(ratios),
        "middle_half": [ratios[quarter], ratios[-1 - quarter]],
        "images_per_s": {name: options.batch_size * options.steps / statistics.median(t) for name, t in times.items()},
        "options": vars(options),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("torch", "timm")},
    }
    print(json.dumps(found, indent=2, default=str))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2, default=str) + "\n")


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=ENCODER_SIZES, default="tiny")
    for name, value in {
        "image-size": 32,
        "patch-size": 4,
        "batch-size": 64,
        "classes": 10,
        "rounds": 15,
        "steps": 5,
        "threads": 2,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


@torch.no_grad()
def check_equal(method: Supervised, model: nn.Module, images: torch.Tensor, encoder: EncoderConfig) -> None:
    """Both compute the same."""
    ours = method.model.eval()(images)
    theirs = model.eval()(normalised(images, encoder))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    method.train(), model.train()


def normalised(images: torch.Tensor, encoder: EncoderConfig) -> torch.Tensor:
    """As the encoder does it for itself."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (encoder.mean, encoder.std))
    return (images - mean) / std


def ours(
    method: Supervised,
    config: SupervisedConfig,
    images: torch.Tensor,
    labels: torch.Tensor,
    options: argparse.Namespace,
) -> Callable[[], object]:
    """A step of the engine."""
    optim = OptimConfig(
        base_lr=LR * 256 / len(images),
        warmup=Duration(steps=1),
        betas=(0.9, 0.999),
        weight_decay=WEIGHT_DECAY,
        layer_decay=DECAY,
        decay_tokens=False,
    )
    runtime = RuntimeConfig(tracker="none", compile=options.compile, threads=options.threads)
    run = Pretrain("benchmark", method=config, optim=optim, batch_size=len(images), runtime=runtime)
    run = replace(run, duration=Duration(steps=1_000_000))
    training = Training(run, method, 1_000_000, 1, start_accelerator(runtime, Path()))
    training.share_out()
    batch, count = Batch(images, None, labels, 0, len(images)), iter(range(1, 1_000_000))
    return lambda: training.step(next(count), [batch])


def timms(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, options: argparse.Namespace
) -> Callable[[], object]:
    """A step of a plain loop with timm's parts."""
    groups = param_groups_layer_decay(model, weight_decay=WEIGHT_DECAY, layer_decay=DECAY)
    for group in groups:
        group["lr"] = LR * group.pop("lr_scale", 1.0)
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.999), fused=True)
    mixup = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=options.classes)
    loss_of = SoftTargetCrossEntropy()
    dtype = torch.bfloat16 if images.device.type == "cuda" else torch.float32
    forward = torch.compile(model, fullgraph=True) if options.compile else model
    mean, std = (torch.full((3, 1, 1), value, device=images.device) for value in (0.485, 0.229))

    def step() -> None:
        mixed, targets = mixup((images - mean) / std, labels)
        with autocast(images.device, dtype):
            loss = loss_of(forward(mixed), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), float("inf"))  # the norm is logged, as ours is
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def timed(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """Seconds of so many steps."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
