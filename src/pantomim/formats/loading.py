"""One way to name an encoder: a run, a file of weights, or a network of timm, open_clip, transformers or CLIP."""

from pathlib import Path

from pantomim.formats.native import load_encoder_folder
from pantomim.formats.reader import read_weights
from pantomim.formats.timm import load_timm
from pantomim.formats.wrapped import WrappedEncoder
from pantomim.nn.vit import Encoder

PREFIXES = ("timm:", "open_clip:", "hf:", "clip:")  # what the names of other libraries' networks begin with


def load_encoder(spec: str | Path) -> Encoder | WrappedEncoder:
    """An encoder, in evaluation mode, ready to call on scaled images; it gives `Features`.

    Args:
        spec: "RUN", a run folder; "FILE", an encoder.safetensors with its encoder.json beside it, or a checkpoint of
            MAE's, BEiT's or CAE's authors or of mmpretrain; "timm:NAME", a pretrained model of timm;
            "timm:NAME@FILE", the same with its weights on disk; "open_clip:NAME:TAG" or "open_clip:NAME@FILE", an
            image tower of open_clip; "hf:NAME" or "hf:FOLDER", a vision transformer of transformers; "clip:FILE",
            OpenAI's image tower.

    Raises:
        ValueError: if there is no such thing, it is damaged, or its library is not installed.
        ConnectionError: if weights are to be downloaded and cannot be had.
    """
    name = str(spec)
    if name.startswith(PREFIXES):
        return _load_wrapped(name)
    path = Path(name)
    if path.is_dir():
        return load_encoder_folder(path)
    if not path.is_file():
        raise ValueError(
            f"encoder must be a run folder, a file of weights, timm:NAME, open_clip:NAME:TAG, hf:NAME or clip:FILE; "
            f"got {name}, which does not exist. Check the path."
        )
    if path.name == "encoder.safetensors" and path.with_suffix(".json").is_file():
        return load_encoder_folder(path.parent)
    return _load_foreign(path)


def _load_wrapped(name: str) -> Encoder | WrappedEncoder:
    """A network of another library."""
    # Imported late: most runs never meet one.
    library, _, rest = name.partition(":")
    if library == "hf":
        from pantomim.formats.hf import load_hf

        return load_hf(rest)
    if library == "clip":
        from pantomim.formats.clip import load_clip

        return load_clip(rest)
    model, _, file = rest.partition("@")
    if library == "open_clip":
        from pantomim.formats.open_clip import load_open_clip

        return load_open_clip(model, file or None)
    return load_timm(model, file or None)


def _load_foreign(path: Path) -> Encoder:
    """The encoder of a checkpoint of MAE's, BEiT's or CAE's authors or of mmpretrain."""
    # Imported late: most runs never meet a foreign file.
    from pantomim.formats.beit import WRAPPERS, is_beit, load_beit
    from pantomim.formats.cae import is_cae, load_cae_file, recognise_cae_file
    from pantomim.formats.foreign import encoder_of, recognise
    from pantomim.formats.mae import MAE_LAYOUT
    from pantomim.formats.mmpretrain import is_mmpretrain, recognise_mmpretrain

    if path.suffix == ".pdparams":
        return encoder_of(load_cae_file(path), str(path))
    weights, source = read_weights(path, WRAPPERS), str(path)
    if is_mmpretrain(weights):
        return encoder_of(recognise_mmpretrain(weights, source), source)
    if is_cae(weights):
        return encoder_of(recognise_cae_file(weights, source), source)
    if is_beit(weights):
        return encoder_of(load_beit(path), source)
    return encoder_of(recognise(weights, source, MAE_LAYOUT), source)
