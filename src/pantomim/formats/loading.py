"""One way to name an encoder: a run, a file of weights, or a model of timm."""

from pathlib import Path

from pantomim.formats.native import load_encoder_folder
from pantomim.formats.reader import read_weights
from pantomim.formats.timm import TimmEncoder, load_timm
from pantomim.nn.vit import Encoder


def load_encoder(spec: str | Path) -> Encoder | TimmEncoder:
    """An encoder, in evaluation mode, ready to call on scaled images; it gives `Features`.

    Args:
        spec: "RUN", a run folder; "FILE", an encoder.safetensors with its encoder.json beside it, or a checkpoint of
            MAE's, BEiT's or CAE's authors or of mmpretrain; "timm:NAME", a pretrained model of timm;
            "timm:NAME@FILE", the same with its weights on disk.

    Raises:
        ValueError: if there is no such thing, or it is damaged.
        ConnectionError: if timm's weights cannot be had.
    """
    name = str(spec)
    if name.startswith("timm:"):
        model, _, file = name.removeprefix("timm:").partition("@")
        return load_timm(model, file or None)
    path = Path(name)
    if path.is_dir():
        return load_encoder_folder(path)
    if not path.is_file():
        raise ValueError(
            f"encoder must be a run folder, a file of weights or timm:NAME; got {name}, which does not exist. "
            f"Check the path."
        )
    if path.name == "encoder.safetensors" and path.with_suffix(".json").is_file():
        return load_encoder_folder(path.parent)
    return _load_foreign(path)


def _load_foreign(path: Path) -> Encoder:
    """The encoder of a checkpoint of MAE's, BEiT's or CAE's authors or of mmpretrain."""
    # Imported late: most runs never meet a foreign file.
    from pantomim.formats.beit import WRAPPERS, is_beit, load_beit
    from pantomim.formats.cae import is_cae, recognise_cae_file
    from pantomim.formats.foreign import encoder_of, recognise
    from pantomim.formats.mae import MAE_LAYOUT
    from pantomim.formats.mmpretrain import is_mmpretrain, recognise_mmpretrain

    weights, source = read_weights(path, WRAPPERS), str(path)
    if is_mmpretrain(weights):
        return encoder_of(recognise_mmpretrain(weights, source), source)
    if is_cae(weights):
        return encoder_of(recognise_cae_file(weights, source), source)
    if is_beit(weights):
        return encoder_of(load_beit(path), source)
    return encoder_of(recognise(weights, source, MAE_LAYOUT), source)
