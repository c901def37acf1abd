"""How often a tokenizer gives a patch the same id, whether it sees the batch resized or a second view of the same crop.

    .venv/bin/python benchmarks/second_view.py --tokenizer RUN --data cifar10.zip --sides 32 48 64
    .venv/bin/python benchmarks/second_view.py --tokenizer RUN --data caltech101_128.zip --sides 224 --seen 112

BEiT and CAE cut the tokenizer's view out of the stored image with the crop and the flip of the encoder's view, and
resize it with Lanczos. That is the reference here. Beside it: the encoder's view itself, resized to the tokenizer's
size in several ways, which needs no second reading of the image; and the same second view resized with another kernel,
which says how much of a difference is the kernel alone. Views are rounded to 8 bits where the pipeline rounds them.
"""

import argparse
import json
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pantomim.data.sources import open_source
from pantomim.data.transforms import Crop, crop_boxes, draw_uniforms, resize_one
from pantomim.tokenizers import load_tokenizer
from pantomim.tokenizers.dvae import DVAETokenizer

RESIZES: dict[str, dict[str, object]] = {
    "bicubic, antialiased": {"mode": "bicubic", "antialias": True},
    "bilinear, antialiased": {"mode": "bilinear", "antialias": True},
    "area": {"mode": "area"},
    "bicubic": {"mode": "bicubic"},
    "nearest": {"mode": "nearest"},
}


def second_view(image: np.ndarray, box: np.ndarray, side: int, flip: bool, kernel: Image.Resampling) -> Tensor:
    """The part of a stored (C, H, W) image, resized by Pillow: (C, side, side) in [0, 1]."""
    top, left, height, width = (int(value) for value in box)
    part = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    part = part.resize((side, side), kernel, box=(left, top, left + width, top + height))
    found = torch.from_numpy(np.asarray(part).copy()).permute(2, 0, 1).float() / 255
    return found.flip(2) if flip else found


def measure(
    tokenizer: DVAETokenizer, images: list[np.ndarray], side: int, seen: int, crop: Crop, seed: int
) -> dict[str, float]:
    """Share of patches with the same id as in the reference, for each way to make the tokenizer's view."""
    sizes = np.array([image.shape[1:] for image in images])
    boxes, flips = crop_boxes(sizes, draw_uniforms(len(images), seed, 0), crop, (side, side))
    drawn = list(zip(images, boxes, flips, strict=True))
    batch = torch.stack([resize_one(image, box, (side, side), bool(flip)) for image, box, flip in drawn]).float() / 255

    def views(kernel: Image.Resampling) -> Tensor:
        return torch.stack([second_view(image, box, seen, bool(flip), kernel) for image, box, flip in drawn])

    ways: dict[str, Callable[[], Tensor]] = {
        "second view, bicubic": lambda: views(Image.Resampling.BICUBIC),
        "second view, bilinear": lambda: views(Image.Resampling.BILINEAR),
    }
    for name, how in RESIZES.items():
        ways[f"batch resized, {name}"] = lambda how=how: F.interpolate(batch, (seen, seen), **how).clamp(0, 1)
    ways["batch not resized"] = lambda: batch
    reference = views(Image.Resampling.LANCZOS)
    expected = tokenizer(reference)
    shares = expected.flatten().bincount(minlength=tokenizer.vocabulary).double() / expected.numel()
    found = {"two patches at random": shares.square().sum().item()}
    for name, make in ways.items():
        if (name == "batch not resized") == (side == seen) or name.startswith("second"):
            view = make()
            found[name] = (tokenizer(view) == expected).double().mean().item()
            found[f"{name}: root mean square of the pixels' difference"] = (
                (view - reference).square().mean().sqrt().item()
            )
    return found


def main() -> None:
    """Print one JSON object a side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--sides", type=int, nargs="+", required=True, help="of the encoder's view, in pixels")
    parser.add_argument("--seen", type=int, default=32, help="side of the tokenizer's view")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument(
        "--scale", type=float, nargs=2, default=(0.08, 1.0), help="area of the crops; BEiT's is 0.08 to 1"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer, dataset = load_tokenizer(given.tokenizer), open_source(given.data, "train")
    assert isinstance(tokenizer, DVAETokenizer), "a discrete auto-encoder is what sees another size than the encoder"
    chosen = np.random.default_rng(given.seed).choice(len(dataset), given.images, replace=False)
    images = [dataset.read_healthy(int(index))[1] for index in chosen]
    crop = Crop(scale=tuple(given.scale), flip=True)
    print(json.dumps({"torch": version("torch"), "pillow": version("pillow"), **vars(given)}))
    for side in given.sides:
        with torch.inference_mode():
            found = measure(tokenizer, images, side, given.seen, crop, given.seed)
        print(json.dumps({"side": side, "seen": given.seen} | {name: round(value, 4) for name, value in found.items()}))


if __name__ == "__main__":
    main()
