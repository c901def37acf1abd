"""How much CMT-MAE's masks and targets change when a guiding network computes in bfloat16 instead of float32.

    .venv/bin/python benchmarks/guide_precision.py --teacher RUN --data cifar10.zip --images 512
    .venv/bin/python benchmarks/guide_precision.py --teacher RUN --data photos/ --device cuda

On a GPU this is what `guide_precision` chooses between, and both are timed in turns. On
a CPU a teacher always computes in float32; there its parts are put through the CPU's autocast, with the softmax in
float32 as a GPU's autocast has it. Beside it, on both: the trunk in bfloat16 and the attention row alone in float32.
The same parts in float32 must say exactly what the teacher says, or nothing is compared.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pantomim.data.sources import open_source
from pantomim.data.transforms import centred_boxes, resize_one, scaled
from pantomim.formats import load_encoder
from pantomim.masking.attention import AttentionMasker, ranks_of
from pantomim.nn.vit import Encoder
from pantomim.targets.features import normalise_features
from pantomim.teachers.base import Guidance, Query
from pantomim.teachers.encoder import EncoderTeacher, attention_of
from pantomim.teachers.mixing import Scores

BFLOAT16, ROW = "bfloat16", "bfloat16, row in float32"
LINES = {
    "agree": ("hidden patches that agree", "{:.4%}"),
    "same": ("images with the same mask", "{:.2%}"),
    "attention": ("attention that is hidden, over float32's", "{:.6f}"),
    "score_median": ("score: median relative difference", "{:.2e}"),
    "score_largest": ("score: largest relative difference", "{:.2e}"),
    "gap": ("yardstick: median gap at the edge of the mask, over the score", "{:.2e}"),
    "ranks": ("rank correlation of the scores, mean over images", "{:.6f}"),
    "ranks_lowest": ("rank correlation of the scores, lowest image", "{:.6f}"),
    "features": ("relative error of the normalised features", "{:.2e}"),
}
Ask = Callable[[Tensor, Query], Guidance]


class SoftmaxInFloat32(TorchFunctionMode):
    """A GPU's autocast computes softmax in float32; the CPU's leaves it in bfloat16."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run as ever, but for softmax."""
        if func is Tensor.softmax:
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
def by_parts(
    encoder: Encoder, images: Float[Tensor, "B C H W"], query: Query, *, trunk_half: bool, row_half: bool
) -> Guidance:
    """What an `EncoderTeacher` says after its final norm, put together from its parts, in chosen precisions."""
    device = images.device.type
    with SoftmaxInFloat32(), torch.autocast(device, torch.bfloat16, enabled=trunk_half):
        tokens, places = encoder.enter(images)
        for block in encoder.blocks[:-1]:
            tokens, _ = block(tokens, places=places)
        with torch.autocast(device, torch.bfloat16, enabled=row_half):
            attention = attention_of(encoder.blocks[-1], tokens, encoder.num_prefix, query, places)
        tokens, _ = encoder.blocks[-1](tokens, places=places)
        tokens = encoder.norm(tokens)
    return Guidance(tokens[:, : encoder.num_prefix], tokens[:, encoder.num_prefix :], attention)


def ways_of(encoder: Encoder, device: torch.device, images: Float[Tensor, "B C H W"]) -> dict[str, Ask]:
    """The same teacher in float32 (the first), in bfloat16, and in bfloat16 but for the row; checked on some images."""
    teacher = EncoderTeacher(encoder, "the teacher", output="norm").to(device)
    exact = partial(by_parts, encoder, trunk_half=False, row_half=False)
    half = partial(by_parts, encoder, trunk_half=True, row_half=True)
    ways: dict[str, Ask] = {"float32": teacher, BFLOAT16: half}
    pairs = [(ways["float32"], exact)]
    if device.type == "cuda":

        def as_in_training(images: Float[Tensor, "B C H W"], query: Query) -> Guidance:
            with torch.autocast(device.type, torch.bfloat16):
                return teacher(images, query)

        ways[BFLOAT16] = as_in_training
        pairs.append((ways[BFLOAT16], half))
    for ours, parts in pairs:
        for query in teacher.queries:
            for said, expected in zip(parts(images, query), ours(images, query), strict=True):
                torch.testing.assert_close(said, expected, rtol=0, atol=0)
    return ways | {ROW: partial(by_parts, encoder, trunk_half=True, row_half=False)}


def compare(
    ways: dict[str, Ask], images: Float[Tensor, "B C H W"], query: Query, masker: AttentionMasker, options: Any
) -> dict[str, dict[str, float]]:
    """The numbers of `LINES` for each way but the first, which they are compared with."""
    kept: dict[str, dict[str, list[Tensor]]] = {name: defaultdict(list) for name in list(ways)[1:]}
    for part in images.split(options.batch_size):
        said = {name: way(part.to(options.device), query) for name, way in ways.items()}
        exact, *others = said.values()
        for name, other in zip(kept, others, strict=True):
            for key, value in differences(exact, other, masker, options).items():
                kept[name][key].append(value.flatten().double().cpu())
    found = {}
    for name, values in kept.items():
        of = {key: torch.cat(parts) for key, parts in values.items()}
        found[name] = {
            "agree": of["agree"].mean().item(),
            "same": (of["agree"] == 1).double().mean().item(),
            "attention": of["attention"].mean().item(),
            "score_median": of["score"].median().item(),
            "score_largest": of["score"].max().item(),
            "gap": of["gap"].median().item(),
            "ranks": of["ranks"].mean().item(),
            "ranks_lowest": of["ranks"].min().item(),
            "features": (of["error"].mean() / of["size"].mean()).sqrt().item(),
        }
    return found


def differences(exact: Guidance, other: Guidance, masker: AttentionMasker, options: Any) -> dict[str, Tensor]:
    """Of one batch: masks (with the same draws for what is equally attended), scores, ranks, features; by image."""
    assert exact.attention is not None
    assert other.attention is not None
    rows, cols = options.grid
    scores, others = (Scores()(attention) for attention in (exact.attention, other.attention))

    def generator() -> torch.Generator:
        return torch.Generator(scores.device).manual_seed(options.seed)

    mask, changed = (masker(len(each), (rows, cols), generator(), attention=each).masked for each in (scores, others))
    num_masked = masker.num_masked((rows, cols))
    ordered = scores.sort(dim=1, descending=True).values
    ranks = [ranks_of(each, generator()).double() for each in (scores, others)]
    centred = [each - each.mean(dim=1, keepdim=True) for each in ranks]
    features, changed_features = (normalise_features(each.patches, "biased") for each in (exact, other))
    return {
        "agree": (mask & changed).sum(dim=1) / num_masked,
        "attention": (scores * changed).sum(dim=1) / (scores * mask).sum(dim=1),
        "score": (others - scores).abs() / scores,
        "gap": (ordered[:, num_masked - 1] - ordered[:, num_masked]) / ordered[:, num_masked - 1],
        "ranks": (centred[0] * centred[1]).sum(dim=1) / centred[0].square().sum(dim=1),  # both have the same ranks
        "error": (changed_features - features).square().mean(dim=(1, 2)),
        "size": features.square().mean(dim=(1, 2)),
    }


def read_images(options: Any, image_size: tuple[int, int]) -> Float[Tensor, "B C H W"]:
    """Centre crops of some images of a split, in [0, 1]."""
    dataset = open_source(options.data, options.split)
    chosen = np.random.default_rng(options.seed).choice(len(dataset), options.images, replace=False)
    found = []
    for index in np.sort(chosen):
        image = dataset.read_healthy(int(index))[1]
        (box,) = centred_boxes(np.array([image.shape[1:]]), image_size)
        found.append(resize_one(image, box, image_size, False))
    return scaled(torch.stack(found), dataset.scale)


def time_each(ways: dict[str, Ask], images: Float[Tensor, "B C H W"], query: Query, rounds: int) -> dict[str, float]:
    """Images a second of each way on a GPU, median of rounds in which they take turns; three rounds before that."""
    taken: dict[str, list[float]] = defaultdict(list)
    for round_ in range(rounds + 3):
        for name, way in ways.items():
            torch.cuda.synchronize(images.device)
            start = time.perf_counter()
            way(images, query)
            torch.cuda.synchronize(images.device)
            if round_ >= 3:
                taken[name].append(time.perf_counter() - start)
    return {name: len(images) / statistics.median(seconds) for name, seconds in taken.items()}


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """All numbers as Markdown, a column for each query and way."""
    columns = [(query, way) for query, found in results.items() for way in found]
    lines = [f"| | {' | '.join(f'{query}: {way}' for query, way in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for key, (words, form) in LINES.items():
        lines.append(f"| {words} | {' | '.join(form.format(results[query][way][key]) for query, way in columns)} |")
    return "\n".join(lines)


def main() -> None:
    """Compare, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="a run folder, or a file of an encoder of ours")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--ratio", type=float, default=0.75)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=30, help="of timing, on a GPU")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="also write everything to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, encoder = torch.device(options.device), load_encoder(options.teacher)
    if not isinstance(encoder, Encoder) or not len(encoder.blocks):
        parser.error("--teacher must be an encoder of ours with blocks: a network of another library has other parts")
    options.grid = encoder.grid
    encoder = encoder.to(device).eval()
    images = read_images(options, encoder.image_size)
    masker = AttentionMasker(ratio=options.ratio)
    ways = ways_of(encoder, device, images[: options.batch_size].to(device))
    queries: tuple[Query, ...] = ("class", "mean") if encoder.config.class_token else ("mean",)
    results = {query: compare(ways, images, query, masker, options) for query in queries}
    kind = f"{encoder.width} wide, {encoder.depth} deep, {encoder.grid[0]} x {encoder.grid[1]} patches"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(f"{kind}; {len(images)} images; {device} ({where}), torch {version('torch')}, seed {options.seed}")
    print(table(results))
    speeds = {}
    if device.type == "cuda":
        batch = images[: options.batch_size].to(device)
        speeds = {query: time_each(ways, batch, query, options.rounds) for query in queries}
        for query, found in speeds.items():
            for name, speed in found.items():
                print(f"{query}, {name}: {speed:.1f} images/s, {speed / found['float32']:.3f} of float32's")
    if options.json:
        record = {"command": sys.argv, "encoder": kind, "device": where, "torch": version("torch")}
        with open(options.json, "w") as file:
            json.dump(record | {"options": vars(options), "results": results, "images_per_s": speeds}, file, indent=1)


if __name__ == "__main__":
    main()
