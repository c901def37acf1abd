"""Images a second of the loader alone, of the training step alone, and of both together.

    .venv/bin/python benchmarks/data.py --data mnist
    .venv/bin/python benchmarks/data.py --data cifar10.zip --threads 2 --json out.json
    .venv/bin/python benchmarks/data.py --data photos.zip --image-size 96 --patch-size 8 --workers 1
    .venv/bin/python benchmarks/data.py --beside photos/ photos.pack tars/ parquets/ --image-size 224 --threads 1

The three take turns, round by round, so that a busy machine hurts them alike; medians are printed. "Waiting" is how
much of the time of the joint run went into waiting for batches or making them. A set of one size lies in memory and is
cropped in batches by the training process itself; any other is decoded by workers.

With `--beside` sources of the same images take turns, read, decoded and cropped in one process from where they lie:
images a CPU second, lowest to highest beside the median. It is what a decoding worker does: crops of uint8, which are
scaled and standardised on the device. A folder of class folders is also read as by MAE's `main_pretrain.py`, whose
workers do all of it, by torchvision: `ImageFolder`, `RandomResizedCrop` (bicubic), flip, `ToTensor`, `Normalize`. For
some images both resize the same box, and the largest difference of a value (0 to 255) is printed.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional as F

from pantomim.core.batch import Batch
from pantomim.core.machine import keep_heap
from pantomim.data.sources import open_source
from pantomim.data.stats import channel_stats
from pantomim.data.stream import Stream
from pantomim.data.transforms import Crop, resize_one
from pantomim.formats.layout import IMAGENET_MEAN, IMAGENET_STD
from pantomim.methods.mae import MAEConfig
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    keep_heap()  # as a run does
    if arguments.beside:
        compare_sources(arguments)
        return
    device = torch.device(arguments.device)
    began = time.perf_counter()
    dataset = open_source(arguments.data)
    open_s = time.perf_counter() - began
    side = arguments.image_size or dataset.facts.median_shorter_side
    image_size = (side // arguments.patch_size * arguments.patch_size,) * 2
    stats = channel_stats(dataset)
    began = time.perf_counter()
    stream = Stream(
        dataset,
        batch_size=arguments.batch_size,
        image_size=image_size,
        crop=Crop(),
        seed=0,
        device=device,
        workers=arguments.workers,
    )
    hold_s = time.perf_counter() - began
    encoder = EncoderConfig(
        image_size=image_size,
        patch_size=arguments.patch_size,
        in_chans=dataset.channels,
        mean=stats.mean,
        std=stats.std,
        **ENCODER_SIZES[arguments.size],
    )
    torch.manual_seed(0)
    method = MAEConfig(encoder=encoder, decoder=DecoderConfig(width=128, depth=4, heads=4)).build().to(device)
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(0)

    def train(batch: Batch, step: int) -> None:
        draws = method.draw(batch, step, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = method(batch, draws)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    ((fixed,),) = stream.batches(0, 1)
    position = 0

    def loader_alone(steps: int) -> None:
        nonlocal position
        for _ in stream.batches(position, position + steps):
            pass
        position += steps

    def step_alone(steps: int) -> None:
        for step in range(steps):
            train(fixed, step)

    waits: list[float] = []

    def both(steps: int) -> None:
        nonlocal position
        waited, began = stream.wait_s, time.perf_counter()
        for step, (batch,) in enumerate(stream.batches(position, position + steps)):
            train(batch, step)
        synchronize(device)
        waits.append((stream.wait_s - waited) / (time.perf_counter() - began))
        position += steps

    runs: dict[str, Callable[[int], None]] = {"loader alone": loader_alone, "step alone": step_alone, "both": both}
    step_alone(2)
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            synchronize(device)
            began = time.perf_counter()
            run(arguments.steps)
            synchronize(device)
            rates[name].append(arguments.steps * arguments.batch_size / (time.perf_counter() - began))
    median = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{dataset!r}, {image_size[0]} x {image_size[1]}, batch {arguments.batch_size}, encoder {arguments.size}")
    print(f"torch {torch.__version__}, {device}, {arguments.threads} threads, {platform.machine()}")
    print(f"opened in {open_s:.2f} s, held in {hold_s:.2f} s")
    for name, value in median.items():
        print(f"{name:>14}: {value:10.0f} images/s")
    share = statistics.median(waits)
    cost = statistics.median(s / b for s, b in zip(rates["step alone"], rates["both"], strict=True)) - 1
    print(f"waiting in both: {share:.1%} of the time; both take {cost:+.1%} more time than the step alone")
    if arguments.json:
        result = {"arguments": vars(arguments), "images_per_s": rates, "wait_share": waits, "open_s": open_s}
        Path(arguments.json).write_text(json.dumps({**result, "hold_s": hold_s}, indent=1))


def compare_sources(arguments: argparse.Namespace) -> None:
    side, count = arguments.image_size or 224, arguments.steps * arguments.batch_size
    readers: dict[str, Callable[[int], None]] = {
        source: our_reader(source, side, arguments) for source in arguments.beside
    }
    first = Path(arguments.beside[0])
    if first.is_dir() and any(each.is_dir() for each in first.iterdir()):
        readers["torchvision, as in main_pretrain.py"] = torchvision_reader(first, side, count)
        print(f"same boxes: values differ by at most {largest_difference(first, side)} of 255")
    rates = {name: list[float]() for name in readers}
    for turn in range(arguments.rounds + 1):
        for name, read in readers.items():
            began = time.process_time()
            read(turn)
            rates[name].append(count / (time.process_time() - began))
    print(f"torch {torch.__version__}, {arguments.threads} threads, {platform.machine()}, {side} x {side}")
    for name, values in rates.items():
        kept = values[1:]  # the first one fetches from the disk
        print(f"{name:>40}: {statistics.median(kept):7.0f} images/CPU s ({min(kept):.0f} to {max(kept):.0f})")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"arguments": vars(arguments), "images_per_cpu_s": rates}, indent=1))


def our_reader(source: str, side: int, arguments: argparse.Namespace) -> Callable[[int], None]:
    stream = Stream(
        open_source(source),
        batch_size=arguments.batch_size,
        image_size=(side, side),
        crop=Crop(),
        seed=0,
        device="cpu",
        workers=0,
        memory_gib=1e-9,
    )

    def read(turn: int) -> None:
        for step in range(turn * arguments.steps, (turn + 1) * arguments.steps):
            stream._read(step)

    return read


def torchvision_reader(folder: Path, side: int, count: int) -> Callable[[int], None]:
    steps = [
        transforms.RandomResizedCrop(side, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    images = ImageFolder(str(folder), transforms.Compose(steps))

    def read(turn: int) -> None:
        order = np.random.default_rng(turn).permutation(np.arange(count) % len(images))
        for at in range(0, count, 128):
            torch.stack([images[int(row)][0] for row in order[at : at + 128]])

    return read


def largest_difference(folder: Path, side: int) -> int:
    """Of a value, over some images, resized from the same box by both."""
    most, images = 0, open_source(str(folder))
    for row in range(0, len(images), max(1, len(images) // 16)):
        pixels, theirs = images.read(row), Image.open(folder / images.name_of(row)).convert("RGB")
        height, width = pixels.shape[1:]
        box = np.array([height // 8, width // 8, height // 2, width * 2 // 3])
        top, left, high, wide = (int(value) for value in box)
        resized = F.resized_crop(theirs, top, left, high, wide, [side, side], transforms.InterpolationMode.BICUBIC)
        ours = resize_one(pixels, box, (side, side), flip=False).numpy().astype(int)
        most = max(most, int(np.abs(ours - np.asarray(resized).transpose(2, 0, 1)).max()))
    return most


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--beside", nargs="+", metavar="SRC", help="only read these sources, to compare them")
    parser.add_argument("--size", default="tiny", choices=list(ENCODER_SIZES))
    parser.add_argument("--image-size", type=int, help="side; the median shorter side if not given")
    parser.add_argument("--patch-size", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10, help="of each of the three in one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
