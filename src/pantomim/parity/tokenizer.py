"""The DALL-E tokenizer, rebuilt with our modules.

Official: openai/DALL-E.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pantomim.formats.files import load_exactly
from pantomim.nn.dvae import DVAEDecoder, DVAEEncoder, DVAESizes, map_pixels, unmap_pixels
from pantomim.parity.item import Computed, Item
from pantomim.tokenizers.dvae import DVAETokenizer


def dalle(item: Item) -> Computed:
    """Scores, ids, decoder and pixel maps; the full-size networks by names and shapes."""
    config = item.config
    sizes = DVAESizes(
        vocabulary=config["vocab_size"],
        width=config["n_hid"],
        code_width=config["n_init"],
        blocks=config["n_blk_per_group"],
    )
    encoder, decoder = DVAEEncoder(sizes).double(), DVAEDecoder(sizes).double()
    load_exactly(encoder, item.weights("encoder/"), item.name)
    load_exactly(decoder, item.weights("decoder/"), item.name)
    tokenizer = DVAETokenizer(encoder, decoder).eval()
    images, values = item.input("images01"), item.input("values")
    rows, cols = tokenizer.grid_of((images.shape[2], images.shape[3]))
    logits, ids = tokenizer.logits(images), tokenizer(images)
    two_best = logits.topk(2, dim=1).values
    return Computed(
        outputs={
            "mapped_images": map_pixels(images),
            "mapped_values": map_pixels(values),
            "unmapped_values": unmap_pixels(values),
            "encoder_logits": logits,
            "ids": ids.unflatten(1, (rows, cols)),
            "decoder_output": decoder(_one_hot(ids, sizes.vocabulary, (rows, cols))),
            "reconstruction": tokenizer.decode(ids, (rows, cols)),
        },
        numbers={"smallest_top1_minus_top2_logit": (two_best[:, 0] - two_best[:, 1]).min().item()},
        deviations=_full_size(item),
    )


def _one_hot(ids: Int[Tensor, "B N"], vocabulary: int, grid: tuple[int, int]) -> Float[Tensor, "B K h w"]:
    return F.one_hot(ids.unflatten(1, grid), vocabulary).movedim(-1, 1).double()


def _full_size(item: Item) -> dict[str, float]:
    """How many names or shapes of the published networks are not ours: none may be."""
    with torch.device("meta"):
        ours = {"encoder": DVAEEncoder(DVAESizes()), "decoder": DVAEDecoder(DVAESizes())}
    found = {}
    for name, network in ours.items():
        shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
        stated = item.spec["full_size_keys"][name]
        found[f"full_size_keys/{name}"] = 0.0 if shapes == stated else math.inf
    return found
