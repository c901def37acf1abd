"""A tokenizer trained here, in a run folder: `tokenizer.safetensors` and its description `tokenizer.json`."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pantomim.formats.native import fill_pair, plain_scale, write_pair
from pantomim.nn.dvae import DVAENetworks, DVAESizes, dvae_networks
from pantomim.nn.vqkd import VQKDNetworks, VQKDSizes, vqkd_networks

TOKENIZER = "tokenizer"
KINDS: dict[str, tuple[Any, Callable[..., DVAENetworks | VQKDNetworks]]] = {
    "dvae": (DVAESizes, dvae_networks),
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
    """The networks of a run folder's tokenizer, in evaluation mode."""

    def build(about: Mapping[str, Any]) -> DVAENetworks | VQKDNetworks:
        sizes, make = KINDS[about["kind"]]
        return make(TypeAdapter(sizes).validate_python(about["sizes"]))

    return fill_pair(path, TOKENIZER, build)
