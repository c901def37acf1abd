"""Time of every masker alone and as a share of a training step of ViT-B, and memory of the noise bank.

    .venv/bin/python benchmarks/masks.py
    .venv/bin/python benchmarks/masks.py --device cuda --bf16 --step-batch 512

All draw the masks of one batch in turns, so that a busy machine hurts them alike; what is asked is the ratio to the
same run's training step (forward, backward, optimiser; random masks drawn beforehand). On a CPU a step of 512 images
takes minutes: there it is timed on --step-batch images and counted in proportion, which flatters no masker, as larger
batches are not slower an image. Block masks are also compared with the sampler of the papers as a plain loop over
images, which is how the authors draw them.
"""

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from pantomim.core.batch import Batch
from pantomim.core.mask import Mask
from pantomim.masking import STRATEGIES
from pantomim.masking.bank import bank_on
from pantomim.masking.color_noise import ColorNoiseMasker
from pantomim.methods.mae import MAEConfig
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig

VIT_BASE = MAEConfig(
    encoder=EncoderConfig(image_size=(224, 224), patch_size=16, **ENCODER_SIZES["base"]),
    decoder=DecoderConfig(width=512, depth=8, heads=16),
)


def argsort_of_noise(batch_size: int, grid: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """The least that random masking can cost."""
    shape = batch_size, grid[0] * grid[1]
    return torch.rand(shape, generator=generator, device=generator.device).argsort(dim=1)


def one_block_mask(rows: int, columns: int, total: int, min_area: int, exact: bool, draw: random.Random) -> np.ndarray:
    """BEiT's sampler for one image, cell by cell on an array (Algorithm 1 of the paper)."""
    masked, count = np.zeros((rows, columns), dtype=np.int64), 0
    reach = math.log(1 / 0.3)
    while count < total:
        before = count
        for _ in range(10):
            area = draw.uniform(min_area, total - count)
            aspect = math.exp(draw.uniform(-reach, reach))
            high, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if high >= rows or wide >= columns:
                continue
            top, left = draw.randint(0, rows - high), draw.randint(0, columns - wide)
            cells = [(r, c) for r in range(top, top + high) for c in range(left, left + wide) if masked[r, c] == 0]
            if 0 < len(cells) <= total - count:
                for r, c in cells:
                    masked[r, c] = 1
                count += len(cells)
                break
        if count == before and not exact:
            break
    return masked


def step_of(device: torch.device, batch_size: int, bf16: bool) -> Callable[[], None]:
    """A training step of MAE, ViT-B, but for drawing masks."""
    torch.manual_seed(0)
    method = VIT_BASE.build().to(device).train()
    batch = Batch(torch.rand(batch_size, 3, 224, 224, device=device), total=batch_size)
    draws = method.draw(batch, 0, torch.Generator(device).manual_seed(0))
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            loss = method(batch, draws)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    """Measure, print a table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--grid", type=int, nargs=2, default=(14, 14))
    parser.add_argument("--ratio", type=float, default=0.75)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--step-batch", type=int, default=8)
    parser.add_argument("--step-rounds", type=int, default=5)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, grid = torch.device(options.device), tuple(options.grid)
    generator = torch.Generator(device).manual_seed(0)

    def seconds(action: Callable[[], object]) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    actions: dict[str, Callable[[], Mask | torch.Tensor]] = {
        "argsort of noise": lambda: argsort_of_noise(options.batch, grid, generator)
    }
    for name, strategy in STRATEGIES.items():
        masker = strategy.masker(options.ratio)
        actions[name] = lambda masker=masker: masker(options.batch, grid, generator)
    times: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(options.rounds + 3):
        for name, action in actions.items():
            generator.manual_seed(number)  # as the engine does: every step has its own
            taken = seconds(action)
            if number >= 3:
                times[name].append(taken)

    step = step_of(device, options.step_batch, options.bf16)
    steps = [seconds(step) for _ in range(options.step_rounds + 2)][2:]
    step_s = statistics.median(steps) * options.batch / options.step_batch
    bank = bank_on(ColorNoiseMasker().noise, device)
    row = "{:18} {:>12} {:>14} {:>16}".format
    print(
        f"{options.batch} masks of {grid[0]}x{grid[1]} on {device}, {options.threads} thread(s), "
        f"torch {version('torch')}"
    )
    print(f"step of ViT-B: {step_s:.3f} s for {options.batch} images, measured with {options.step_batch}")
    print(f"bank of a colour: {bank.nbytes / 1e6:.0f} MB\n")
    print(row("masker", "median ms", "masks/s", "share of a step"))
    table: dict[str, Any] = {}
    for name, taken in times.items():
        median = statistics.median(taken)
        table[name] = {"median_s": median, "share_of_step": median / step_s}
        print(row(name, f"{1e3 * median:.2f}", f"{options.batch / median:,.0f}", f"{median / step_s:.4%}"))

    print("\nblock masks against a plain loop over images, masks a second, in turns:")
    plain = random.Random(0)
    for name, total, exact in (("block_beit", 75, False), ("block", 98, True)):
        masker, num = STRATEGIES[name].masker(total / 196), max(options.batch // 8, 1)
        ratios, ours_rate, loop_rate = [], [], []
        for number in range(options.rounds // 2 + 1):
            generator.manual_seed(number)
            ours = seconds(lambda: masker(options.batch, (14, 14), generator)) / options.batch  # noqa: B023
            loop = seconds(lambda: [one_block_mask(14, 14, total, 16, exact, plain) for _ in range(num)]) / num  # noqa: B023
            if number:
                ratios.append(loop / ours)
                ours_rate.append(1 / ours)
                loop_rate.append(1 / loop)
        low, _, high = statistics.quantiles(ratios, n=4)
        middle = statistics.median(ratios)
        table[f"{name} {total} of 196, times a plain loop"] = middle
        rates = f"{statistics.median(ours_rate):,.0f} against {statistics.median(loop_rate):,.0f}"
        print(f"  {name}, {total} of 196: {rates}: {middle:.1f}x (quartiles {low:.1f} to {high:.1f})")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"options": vars(options), "step_s": step_s, "bank_bytes": bank.nbytes, "maskers": table}, file)


if __name__ == "__main__":
    main()
