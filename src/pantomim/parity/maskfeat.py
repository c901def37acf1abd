"""MaskFeat's histograms of gradients, rebuilt with our target. Official: facebookresearch/SlowFast."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pantomim.parity.item import Computed, Item
from pantomim.targets import hog

INNER = "_inner_columns"  # what is named so leaves out the outermost columns, of cells or of patches


def histograms(item: Item) -> Computed:
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
        masked = item.tensors["in/mask"].flatten(1).bool() if item.has("mask") else torch.ones(labels.shape[:2]).bool()
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


ITEMS = {"maskfeat_hog": histograms}
