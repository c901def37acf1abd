"""The DALL-E tokenizer, rebuilt with our modules. Official: openai/DALL-E."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.formats.files import load_exactly
from pantomim.nn.dvae import DVAEDecoder, DVAEEncoder, DVAESizes, map_pixels, unmap_pixels
from pantomim.parity.item import Computed, Item
from pantomim.tokenizers.dvae import DVAETokenizer


def dalle(item: Item) -> Computed:
    """Scores, ids, decoder and pixel maps; the full-size networks by names and shapes, where they are stated."""
    config, outputs = item.config, dict[str, Tensor]()
    sizes = DVAESizes(
        vocabulary=config["vocab_size"],
        width=config["n_hid"],
        code_width=config["n_init"],
        blocks=config["n_blk_per_group"],
    )
    encoder, decoder = DVAEEncoder(sizes).double(), DVAEDecoder(sizes).double()
    load_exactly(encoder, item.weights("encoder/"), item.name)
    load_exactly(decoder, item.weights("decoder/"), item.name)
    tokenizer, images = DVAETokenizer(encoder, decoder).eval(), item.input("images01")
    rows, cols = tokenizer.grid_of((images.shape[2], images.shape[3]))
    logits, ids = tokenizer.logits(images), tokenizer(images)
    grid_of_ids = ids.unflatten(1, (rows, cols))
    two_best = logits.topk(2, dim=1).values
    if item.has("values"):
        values = item.input("values")
        outputs = {"mapped_values": map_pixels(values), "unmapped_values": unmap_pixels(values)}
    return Computed(
        outputs
        | {
            "mapped_images": map_pixels(images),
            "encoder_logits": logits,
            "ids": grid_of_ids,
            "decoder_output": decoder(F.one_hot(grid_of_ids, sizes.vocabulary).movedim(-1, 1).double()),
            "reconstruction": tokenizer.decode(ids, (rows, cols)),
        },
        numbers={"smallest_top1_minus_top2_logit": (two_best[:, 0] - two_best[:, 1]).min().item()},
        deviations=_full_size(item),
    )


def _full_size(item: Item) -> dict[str, float]:
    """Whether names and shapes of the published networks are ours (0) or not (infinite)."""
    with torch.device("meta"):
        ours = {"encoder": DVAEEncoder(DVAESizes()), "decoder": DVAEDecoder(DVAESizes())}
    stated = item.spec.get("full_size_keys", {})
    return {
        f"full_size_keys/{part}": 0.0 if _shapes(network) == stated[part] else math.inf
        for part, network in ours.items()
        if part in stated
    }


def _shapes(network: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in network.state_dict().items()}


ITEMS = {"dalle": dalle}
