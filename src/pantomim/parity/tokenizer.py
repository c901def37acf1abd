"""The DALL-E tokenizer, rebuilt with our modules. Official: openai/DALL-E."""

import torch
from torch.nn import functional as F

from pantomim.formats.files import load_exactly
from pantomim.nn.dvae import DVAEDecoder, DVAEEncoder, DVAESizes, map_pixels, unmap_pixels
from pantomim.parity.item import Computed, Item, exact
from pantomim.tokenizers.dvae import DVAETokenizer


def dalle(item: Item) -> Computed:
    """Scores, ids, decoder and pixel maps; the full-size networks by names and shapes, where they are stated."""
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
    tokenizer, images = DVAETokenizer(encoder, decoder).eval(), item.input("images01")
    grid = tokenizer.grid_of((images.shape[2], images.shape[3]))
    logits, ids = tokenizer.logits(images), tokenizer(images)
    grid_of_ids = ids.unflatten(1, grid)
    two_best = logits.topk(2, dim=1).values
    found = Computed(
        {
            "mapped_images": map_pixels(images),
            "encoder_logits": logits,
            "ids": grid_of_ids,
            "decoder_output": decoder(F.one_hot(grid_of_ids, sizes.vocabulary).movedim(-1, 1).double()),
            "reconstruction": tokenizer.decode(ids, grid),
        },
        {"smallest_top1_minus_top2_logit": (two_best[:, 0] - two_best[:, 1]).min().item()},
    )
    if item.has("values"):
        values = item.input("values")
        found.outputs |= {"mapped_values": map_pixels(values), "unmapped_values": unmap_pixels(values)}
    with torch.device("meta"):
        published = {"encoder": DVAEEncoder(DVAESizes()), "decoder": DVAEDecoder(DVAESizes())}
    stated = item.spec.get("full_size_keys", {})
    for part in stated.keys() & published:
        shapes = {name: list(tensor.shape) for name, tensor in published[part].state_dict().items()}
        found.errors[f"full_size_keys/{part}"] = exact(shapes == stated[part])
    return found


ITEMS = {"dalle": dalle}
