"""Files of small discrete auto-encoders: of DALLE-pytorch, and of the "customized" tokenizers of CAE and BEiT.

CAE's (and DALLE-pytorch's) have `encoder.5.weight` where BEiT's have `encoder.6.weight`, at three strided convolutions;
the two orders of parts are told apart by where the first residual block stands.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pantomim.formats.files import key_report
from pantomim.formats.reader import read_weights
from pantomim.nn.strided_dvae import StridedDVAE, StridedSizes

WRAPPERS = ("weights", "model", "state_dict")


def load_strided_dvae(path: str | Path) -> StridedDVAE:
    """The networks of a file, in evaluation mode; every name and shape must be right.

    Raises:
        ValueError: if the file is damaged, would run code, or holds something else, with the lists of missing,
            unexpected and mis-shaped names.
    """
    weights, source = read_weights(path, WRAPPERS), str(path)
    sizes = _sizes(weights, source)
    with torch.device("meta"):  # sizes come from the file: nothing is allocated before every shape is known to be right
        module = StridedDVAE(sizes)
    if report := key_report(module.state_dict(), weights):
        raise _refused(source, f"{report} (for {sizes})")
    module.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    return module.requires_grad_(False).eval()


def _sizes(weights: Mapping[str, Tensor], source: str) -> StridedSizes:
    codebook, first = weights.get("codebook.weight"), weights.get("encoder.0.0.weight")
    if codebook is None or first is None or codebook.dim() != 2 or first.dim() != 4:
        raise _refused(source, f"no codebook.weight and encoder.0.0.weight among {len(weights)} tensors")
    places = {
        kind: {int(match[1]) for name in weights if (match := re.match(pattern, name))}
        for kind, pattern in (("layers", r"encoder\.(\d+)\.0\.weight"), ("blocks", r"encoder\.(\d+)\.net\.0\.weight"))
    }
    if not places["blocks"]:
        raise _refused(source, "no residual blocks")
    return StridedSizes(
        interleaved=min(places["blocks"]) == 1 and len(places["layers"]) > 1,
        in_chans=first.shape[1],
        vocabulary=codebook.shape[0],
        width=first.shape[0],
        code_width=codebook.shape[1],
        layers=len(places["layers"]),
        blocks=len(places["blocks"]),
    )


def _refused(source: str, found: str) -> ValueError:
    return ValueError(
        f"{source} must hold a discrete auto-encoder as DALLE-pytorch, BEiT's or CAE's code saves it; got {found}. "
        f"DALL-E's own files are read as dalle:FILE."
    )
