"""Where encoders look: the attention maps that would guide masks, and how far features differ from image to image.

    .venv/bin/python benchmarks/attention_maps.py RUN [RUN ...] --data cifar10.zip --images 256
    .venv/bin/python benchmarks/attention_maps.py RUN --data cifar10.zip --images 32 --fresh 3

For each encoder: the entropy of the class token's map over its largest (1: all patches alike), mean over the images;
the mean map's corners and its middle, as multiples of an even share; and `spread`, which CMT-MAE logs as
`student_std`, for the encoder, for one with its patch projection set to zero, and with --fresh for some with random
initial weights.
"""

import argparse
import copy
from collections.abc import Iterator

import torch
from guide_precision import read_images
from torch import Tensor

from pantomim.formats import load_encoder
from pantomim.nn.vit import Encoder
from pantomim.teachers.encoder import EncoderTeacher
from pantomim.teachers.mixing import Scores, evenness, spread


def main() -> None:
    """Look, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoders", nargs="+", help="run folders, or files of encoders of ours")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--fresh", type=int, default=0, help="random-init encoders of its sizes, seeds 0, 1 ...")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images")
    options = parser.parse_args()
    print("| encoder | entropy | corners | middle | spread | spread, blind |\n|---|---|---|---|---|---|")
    for name, encoder in named(options.encoders, options.fresh):
        images = read_images(options, encoder.image_size)
        shares, found = look(encoder, images)
        even = shares.mean(dim=0).view(encoder.grid) * shares.shape[1]
        rows, cols = (size // 2 for size in encoder.grid)
        corners = ", ".join(f"{share:.2f}" for share in even[[0, 0, -1, -1], [0, -1, 0, -1]].tolist())
        middle = even[rows - 1 : rows + 1, cols - 1 : cols + 1].mean().item()
        _, blind = look(blinded(encoder), images)
        cells = [f"{evenness(shares).item():.3f}", corners, f"{middle:.2f}", f"{found:.2f}", f"{blind:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")


def named(sources: list[str], fresh: int) -> Iterator[tuple[str, Encoder]]:
    """The encoders, then random-init encoders of its sizes."""
    loaded = [load_encoder(source) for source in sources]
    for source, encoder in zip(sources, loaded, strict=True):
        if not isinstance(encoder, Encoder):
            raise ValueError(f"attention_maps.encoders must be encoders of ours; got {source}. Name a run.")
        yield source, encoder
    for seed in range(fresh):
        torch.manual_seed(seed)
        yield f"untrained, seed {seed}", loaded[0].config.build()


def look(encoder: Encoder, images: Tensor) -> tuple[Tensor, float]:
    """Shares of the class token's attention, (B, N), and the spread of the features after the final norm."""
    said = EncoderTeacher(encoder, "the encoder", output="norm")(images, "class")
    assert said.attention is not None
    return Scores()(said.attention), spread(said.patches).item()


def blinded(encoder: Encoder) -> Encoder:
    """A copy whose patches are all projected to the same."""
    blind = copy.deepcopy(encoder)
    with torch.no_grad():
        blind.patch_embed.proj.weight.zero_()
    return blind


if __name__ == "__main__":
    main()
