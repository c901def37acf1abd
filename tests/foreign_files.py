"""Our modules' weights under other projects' names, as in their checkpoints; and what no checkpoint may hold."""

from pathlib import Path

from pantomim.formats.cae import official_name as cae_name
from pantomim.formats.mae import official_name
from pantomim.formats.mmpretrain import mmpretrain_name
from pantomim.nn.position import sincos_2d_rows_first


def official_weights(*modules):
    """Under the MAE authors' names, or BEiT's."""
    return {official_name(name): tensor for module in modules for name, tensor in module.state_dict().items()}


def mmpretrain_weights(*modules):
    return {mmpretrain_name(name): tensor for name, tensor in official_weights(*modules).items()}


def cae_weights(method, release="lxtGH/CAE"):
    """A pre-training file's content, the copy of the encoder and the second release's table included."""
    weights = {cae_name(name, release): tensor for name, tensor in method.state_dict().items()}
    if release == "Atten4Vis/CAE":
        width, grid = method.decoder.position.shape[1], method.encoder.grid
        weights["rd_pos_embed"] = sincos_2d_rows_first(width, grid, 1)[None].float()
    return weights


class Bomb:
    """Its pickle makes a file where it is executed."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (Path(self.target),)
