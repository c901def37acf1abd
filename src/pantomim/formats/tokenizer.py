"""A tokenizer trained here, in a run folder: `tokenizer.safetensors` and its description `tokenizer.json`."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pantomim.formats.native import damaged, fill_pair, plain_scale, read_description, write_pair
from pantomim.nn.dvae import DVAENetworks, DVAESizes
from pantomim.nn.vqkd import VQKDNetworks, VQKDSizes, vqkd_networks

TOKENIZER = "tokenizer"
KINDS: dict[str, tuple[Any, Callable[..., DVAENetworks | VQKDNetworks]]] = {
    "dvae": (DVAESizes, DVAENetworks),
    "vqkd": (VQKDSizes, vqkd_networks),
}


def save_tokenizer(folder: str | Path, networks: DVAENetworks | VQKDNetworks, *, scale: Any, recipe: str) -> None:
    """Write the networks of a tokenizer into a folder; arguments as for `native.save_encoder`."""
    description = {
        "kind": "dvae" if isinstance(networks, DVAENetworks) else "vqkd",
        "sizes": asdict(networks.sizes),
        "scale": plain_scale(scale),
        "recipe": recipe,
    }
    write_pair(folder, TOKENIZER, networks.state_dict(), description)


def load_networks(path: str | Path) -> DVAENetworks | VQKDNetworks:
    """The networks of a run folder's tokenizer, in evaluation mode.

    Raises:
        ValueError: if the files are missing, damaged, of a newer format, or do not belong together.
    """
    stated = read_description(path, TOKENIZER)
    try:
        kind, build = KINDS[stated["kind"]]
        sizes = TypeAdapter(kind).validate_python(stated["sizes"])
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(Path(path) / "tokenizer.json", f"{type(error).__name__} {error}") from error
    return fill_pair(path, TOKENIZER, partial(build, sizes))
