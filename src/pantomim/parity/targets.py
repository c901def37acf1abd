"""What methods predict or are guided by: CLIP's image tower, DALL-E's tokenizer, MaskFeat's histograms of gradients.

Official: openai/CLIP, openai/DALL-E, facebookresearch/SlowFast.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pantomim.formats.clip import clip_encoder
from pantomim.formats.timm import attention_rows
from pantomim.nn.dvae import DVAEDecoder, DVAEEncoder, DVAESizes, map_pixels, unmap_pixels
from pantomim.nn.vit import EncoderConfig
from pantomim.parity.item import RELATIVE, Computed, Item, distance, exact
from pantomim.parity.networks import filled, joined
from pantomim.targets import hog
from pantomim.teachers.encoder import EncoderTeacher
from pantomim.teachers.fitting import fit_wrapped
from pantomim.tokenizers.dvae import DVAETokenizer

INNER = "_inner_columns"  # what is named so leaves out the outermost columns, of cells or of patches


@torch.no_grad()
def clip_visual(item: Item) -> Computed:
    """The tower from its own weights: at its own size, and at one whose positions are resampled."""
    config, images = item.config, item.input("images")
    plain: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}  # the item's images are normalised already
    encoder = clip_encoder(item.weights(), item.name, activation="quick_gelu", heads=config["heads"], **plain)
    block, norm, projection = (
        joined(EncoderTeacher(encoder, item.name, output=output)(images)) for output in ("block", "norm", "projection")
    )
    teacher: Any = EncoderTeacher(encoder, item.name)
    of_class, of_patches = (teacher(images, query).attention for query in ("class", "mean"))
    before_last, _ = encoder.last_blocks(images, 2).tokens
    blocks: Any = encoder.model.blocks
    last_norm: Any = encoder.model.norm
    full = attention_rows(blocks[-1], before_last, slice(None)).mean(dim=1)
    class_normed = torch.cat([norm[:, :1], block[:, 1:]], dim=1)
    found = Computed(
        {
            "image_embedding": projection[:, 0],
            "tokens_before_ln_post": block,
            "tokens_after_ln_post": norm,
            "tokens_projected": projection,
            "tokens_projected_without_patch_norm": encoder.project(class_normed),
            "last_block_attention_mean_over_heads": full,
            "cls_attention": of_class,
        },
        config={"layer_norm_eps": last_norm.eps, "layers": encoder.num_blocks, "output_dim": encoder.projected},
    )
    found.errors["attention of the mean over patches"] = distance(of_patches, full[:, 1:, 1:].mean(dim=1)) / RELATIVE
    if item.has("images_other_size"):
        larger = EncoderConfig(image_size=(config["other_resolution"],) * 2, patch_size=config["patch_size"])
        fitted = fit_wrapped(encoder, larger)
        elsewhere = EncoderTeacher(fitted, item.name, output="projection")(item.input("images_other_size"))
        found.outputs["tokens_projected_other_size"] = joined(elsewhere)
        found.outputs["positions_other_size"] = fitted.state_dict()["model.pos_embed"][0]
    return found


def dalle(item: Item) -> Computed:
    """Scores, ids, decoder and pixel maps; the full-size networks by names and shapes, where they are stated."""
    names = ("vocab_size", "n_hid", "n_init", "n_blk_per_group")
    vocabulary, width, code_width, blocks = (item.config[name] for name in names)
    sizes = DVAESizes(vocabulary=vocabulary, width=width, code_width=code_width, blocks=blocks)
    encoder = filled(item, DVAEEncoder(sizes), str, item.weights("encoder/"))
    decoder = filled(item, DVAEDecoder(sizes), str, item.weights("decoder/"))
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


def maskfeat_hog(item: Item) -> Computed:
    """Histograms before and after their normalisation, and the target of every patch.

    In the first and last column of pixels, rounding decides the bin of the authors' gradients. Items either have
    images that are flat there, or ask for what lies further in.
    """
    config, images = item.config, item.input("images")
    patch, cell = config["patch"], config["cell"]
    settings = hog.HOGTargetConfig(bins=config["nbins"], cell=cell, window=config["gaussian_window"] or None)
    target = hog.HOGTarget(settings, patch, images.shape[1])
    plain, edge = target.histograms(images), 0  # pixels at either side whose result is not stored
    outputs = {"histogram_unnormalised": plain, "histogram_normalised": F.normalize(plain, dim=2, eps=hog.EPS)}
    for name, cells in list(outputs.items()):
        if item.asks(name + INNER):
            left_out = _left_out(item, name + INNER, cells, cells.shape[-1])
            outputs[name + INNER], edge = cells[..., left_out : cells.shape[-1] - left_out], left_out * cell
    if item.asks("labels"):
        labels, columns = target(images), images.shape[3] // patch  # (B, N, K)
        masked = item.input("mask").flatten(1).bool() if item.has("mask") else torch.ones(labels.shape[:2]).bool()
        left_out = _left_out(item, "labels_all" + INNER, labels, columns)
        column = torch.arange(labels.shape[1]) % columns
        inside = (column >= left_out) & (column < columns - left_out)
        outputs |= {
            "labels_all": labels,
            "labels_masked": labels[masked],
            "labels_all" + INNER: labels[:, inside],
            "labels" + INNER: labels[:, inside],
            "labels_masked" + INNER: labels[masked & inside],
        }
        edge = edge or (left_out * patch if item.asks(INNER) else 0)
    for name, tensor in outputs.items():  # rows and columns of patches may be one dimension or two
        stored = item.output(name)
        if stored is not None and stored.numel() == tensor.numel():
            outputs[name] = tensor.reshape(stored.shape)

    across, down = hog.gradients(images)
    seen, flat = slice(edge, images.shape[3] - edge), (across == 0) & (down == 0)
    turn = (torch.atan2(across, down) / torch.pi * config["nbins"])[..., seen][~flat[..., seen]]
    whole, stored_part = int(flat.sum()), int(flat[..., seen].sum())  # items count one or the other
    numbers = {
        "smallest_distance_to_a_bin_border_in_bins": (turn - turn.round()).abs().min().item(),
        "pixels_with_zero_gradient": whole,
    }
    if item.numbers.get("pixels_with_zero_gradient") == stored_part:
        numbers["pixels_with_zero_gradient"] = stored_part
    return Computed(outputs, numbers)


def _left_out(item: Item, name: str, whole: Tensor, columns: int) -> int:
    """How many columns at either side an output is without: one, unless its size says otherwise."""
    stored = item.output(name)
    kept = columns - 2 if stored is None else columns * stored.numel() // whole.numel()
    return (columns - kept) // 2
