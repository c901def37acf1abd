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
    across, down = hog.gradients(images)
    length = (across.square() + down.square()).sqrt()
    seen = slice(edge, images.shape[3] - edge)
    return Computed(
        {name: _shaped(item, name, tensor) for name, tensor in outputs.items()},
        numbers={
            "smallest_distance_to_a_bin_border_in_bins": _to_border(
                across[..., seen], down[..., seen], config["nbins"]
            ),
            "pixels_with_zero_gradient": _count_zeros(item, length, length[..., seen]),
        },
    )


def _left_out(item: Item, name: str, whole: Tensor, columns: int) -> int:
    """How many columns at either side an output is without: one, unless its size says otherwise."""
    want, _ = item.expected().get(name, (None, {}))
    kept = columns - 2 if want is None else columns * want.numel() // whole.numel()
    return (columns - kept) // 2


def _shaped(item: Item, name: str, tensor: Tensor) -> Tensor:
    """As the item has it: rows and columns of patches may be one dimension or two."""
    want, _ = item.expected().get(name, (None, {}))
    return tensor if want is None or want.numel() != tensor.numel() else tensor.reshape(want.shape)


def _count_zeros(item: Item, *lengths: Tensor) -> int:
    """Pixels without gradient: of whole images, or of what is stored, whichever the item counts."""
    counts = [int((length == 0).sum()) for length in lengths]
    stated = item.numbers.get("pixels_with_zero_gradient")
    return stated if stated in counts else counts[0]


def _to_border(across: Tensor, down: Tensor, bins: int) -> float:
    """How close, in bins, a gradient comes to the border of its bin."""
    turn = (torch.atan2(across, down) / torch.pi * bins)[(across != 0) | (down != 0)]
    return (turn - turn.round()).abs().min().item()


ITEMS = {"maskfeat_hog": histograms}
