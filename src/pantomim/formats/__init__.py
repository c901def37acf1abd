"""Reading and writing weights: our own files, and the layouts of others, each in one file and in one tuple."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pantomim.core.reading import read_json
from pantomim.core.scales import BYTES
from pantomim.formats.beit import BEiTFormat
from pantomim.formats.cae import CAEFormat
from pantomim.formats.clip import load_clip
from pantomim.formats.files import check_finite
from pantomim.formats.hf import load_hf
from pantomim.formats.importing import ImportReport, write_found
from pantomim.formats.layout import AS_PUBLISHED, Format, Found, Given, first_names
from pantomim.formats.mae import MAEFormat
from pantomim.formats.mmpretrain import MMPretrainFormat
from pantomim.formats.native import NAMES, load_encoder_file, load_encoder_folder
from pantomim.formats.open_clip import load_open_clip
from pantomim.formats.reader import read_content, weights_of
from pantomim.formats.timm import load_timm
from pantomim.formats.transform import Transform
from pantomim.formats.wrapped import WrappedEncoder, resized_encoder
from pantomim.nn.vit import Encoder

LOG = logging.getLogger(__name__)
FORMATS: tuple[Format, ...] = (MAEFormat(), MMPretrainFormat(), BEiTFormat(), CAEFormat())
LIBRARIES: dict[str, Callable[[str], Encoder | WrappedEncoder]]
LIBRARIES = {"timm": load_timm, "open_clip": load_open_clip, "hf": load_hf, "clip": load_clip}
PREFIXES = tuple(f"{library}:" for library in LIBRARIES)  # what the names of other libraries' networks begin with


def load(spec: str | Path, image_size: tuple[int, int] | None = None) -> Encoder | WrappedEncoder:
    """As `load_encoder`, resized if asked, with the `transform` from pictures; what positions underwent is logged."""
    encoder = load_encoder(spec)
    if image_size is not None and image_size != encoder.image_size:
        own, encoder = encoder.image_size, resized_encoder(encoder, image_size)
        LOG.info("%s: positions of %d x %d pixels are resampled to %d x %d", spec, *own, *image_size)
    encoder.transform = Transform.of(encoder)
    return encoder


def load_encoder(spec: str | Path) -> Encoder | WrappedEncoder:
    """An encoder, in evaluation mode, ready to call on scaled images, or on whole numbers; it gives `Features`.

    Of a run folder, a file of ours beside its description, a checkpoint in one of the `FORMATS`, or a network of
    others: timm:NAME, timm:NAME@FILE, open_clip:NAME:TAG, open_clip:NAME@FILE, hf:NAME, hf:FOLDER or clip:FILE. Raises
    `ValueError`, and `ConnectionError` where weights cannot be downloaded.
    """
    path = Path(name := str(spec))
    if not name.startswith(PREFIXES) and path.is_dir():
        if (path / "config.json").is_file() and not (path / "encoder.json").is_file():
            timms = "architecture" in read_json(path / "config.json", dict[str, Any], "Name another folder.")
            rule = "a run, not what was exported from it" if timms else f"hf:{name} for a folder of transformers"
            raise ValueError(
                f"encoder must be {rule}; got {name}. {'Name the run' if timms else 'Write hf: before it'}."
            )
        return load_encoder_folder(path)
    about = path.with_suffix(".json")
    if path.suffix == ".safetensors" and about.is_file() and b'"format_version"' in about.read_bytes():
        return load_encoder_file(path)
    encoder: Encoder | WrappedEncoder
    if name.startswith(PREFIXES):
        library, _, rest = name.partition(":")
        encoder = LIBRARIES[library](rest)
    elif path.is_file():
        found, weights, given = _opened(name, None, AS_PUBLISHED)
        encoder = found.to_encoder(weights, name, given)
    else:
        raise ValueError(
            f"encoder must be a run folder, a file of weights, timm:NAME, open_clip:NAME:TAG, hf:NAME or clip:FILE; "
            f"got {name}, which does not exist. Check the path."
        )
    check_finite(encoder.state_dict(), name)
    encoder.scale = BYTES
    return encoder


def load_trainable(spec: str | Path) -> Encoder:
    """As `load_encoder`, but our `Encoder`, which runs on parts of images; a `ValueError` where none of ours can."""
    encoder = load_encoder(spec)
    if isinstance(encoder, Encoder):
        return encoder
    trained = encoder.trainable()
    trained.scale = encoder.scale
    return trained


def read_checkpoint(path: str | Path, format: str | None = None, given: Given = AS_PUBLISHED) -> Found:
    """What a checkpoint of another project holds; without the name of a format, the one that recognises it reads it."""
    layout, weights, given = _opened(path, format, given)
    return layout.read(weights, str(path), given)


def import_checkpoint(
    path: str | Path, out: str | Path, format: str | None = None, given: Given = AS_PUBLISHED
) -> ImportReport:
    """Turn a checkpoint into our files in the folder `out`; other arguments as for `read_checkpoint`."""
    folder = Path(out)
    if there := [name for name in NAMES if (folder / f"{name}.safetensors").exists()]:
        raise ValueError(
            f"import.out must not hold weights yet; got {folder} with {', '.join(there)}. Choose a new folder."
        )
    return write_found(read_checkpoint(path, format, given), Path(path), folder)


def format_of(weights: Mapping[str, Tensor], source: str, format: str | None = None) -> Format:
    """The layout of this name, or the one that recognises a file by the names and shapes of its tensors."""
    known = {layout.name: layout for layout in FORMATS}
    if format in known:
        return known[format]
    if format is not None:
        raise ValueError(
            f"import.format must be one of {', '.join(known)}; got {format}. Leave it out to have it found."
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    found = [layout for layout in FORMATS if layout.recognises(shapes.keys(), shapes)]
    if len(found) != 1:
        names = ", ".join(layout.name for layout in found) or "none of them"
        raise ValueError(
            f"{source} must have one of the layouts {', '.join(known)}; got {names}. It holds {first_names(weights)}. "
            f"Use timm:NAME@FILE, open_clip:NAME@FILE or clip:FILE for networks of theirs."
        )
    return found[0]


def _opened(path: str | Path, format: str | None, given: Given) -> tuple[Format, dict[str, Tensor], Given]:
    content = read_content(path)
    check_finite(weights := weights_of(path, content), str(path))
    layout = format_of(weights, str(path), format)
    return layout, weights, layout.complete(given, content)
