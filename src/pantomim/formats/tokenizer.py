"""A tokenizer trained here, in a run folder: `tokenizer.safetensors` and its description `tokenizer.json`."""

import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from pantomim.core.files import replace_file
from pantomim.formats.files import hash_weights, load_exactly
from pantomim.nn.dvae import DVAENetworks, DVAESizes, dvae_networks
from pantomim.nn.vqkd import VQKDNetworks, VQKDSizes, vqkd_networks

FORMAT_VERSION = 1
WEIGHTS, DESCRIPTION = "tokenizer.safetensors", "tokenizer.json"


def save_tokenizer(folder: str | Path, networks: DVAENetworks | VQKDNetworks, *, scale: Any, recipe: str) -> None:
    """Write the networks, weights first: a pair cut in the middle is found out by its hash.

    Args:
        folder: Made if needed.
        networks: Written in their own number type.
        scale: The data set's rule from stored values to the networks' input; a dataclass or a mapping.
        recipe: Name of what was run.
    """
    folder = Path(folder)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in networks.state_dict().items()}
    description = {
        "format_version": FORMAT_VERSION,
        "kind": "dvae" if isinstance(networks, DVAENetworks) else "vqkd",
        "sizes": asdict(networks.sizes),
        "scale": asdict(scale) if is_dataclass(scale) and not isinstance(scale, type) else dict(scale),
        "recipe": recipe,
        "sha256": hash_weights(weights),
    }
    replace_file(folder / WEIGHTS, save(weights))
    replace_file(folder / DESCRIPTION, (json.dumps(description, indent=2) + "\n").encode())


def load_networks(path: str | Path) -> DVAENetworks | VQKDNetworks:
    """What gives ids in a run folder, in evaluation mode: of a discrete auto-encoder, or learned from a teacher.

    Raises:
        ValueError: if the files are missing, damaged, of a newer format, or do not belong together.
    """
    folder = Path(path)
    if not (folder / DESCRIPTION).is_file():
        raise ValueError(
            f"tokenizer must be a folder with {WEIGHTS} and {DESCRIPTION}; got {folder}, which has no {DESCRIPTION}. "
            f"Give the folder of a finished run of `pantomim tokenizer train`."
        )
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        version, expected = int(description["format_version"]), description["sha256"]
        if version <= FORMAT_VERSION:
            kinds: dict[str, Any] = {"dvae": (DVAESizes, dvae_networks), "vqkd": (VQKDSizes, vqkd_networks)}
            sizes_type, build = kinds[description["kind"]]
            sizes = TypeAdapter(sizes_type).validate_python(description["sizes"])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder / DESCRIPTION, f"{type(error).__name__} {error}") from error
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{folder / DESCRIPTION}: format_version must be at most {FORMAT_VERSION}; got {version}. The file comes "
            f"from a newer pantomim: `pip install --upgrade pantomim`."
        )
    try:
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, FileNotFoundError) as error:
        raise _damaged(folder / WEIGHTS, str(error)) from error
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten; nobody else's draws may change
        networks: DVAENetworks | VQKDNetworks = build(sizes)
    if any(tensor.dtype == torch.float64 for tensor in weights.values()):
        networks = networks.double()
    load_exactly(networks, weights, str(folder / WEIGHTS))
    if hash_weights(weights) != expected:
        raise _damaged(folder / WEIGHTS, f"another hash than {DESCRIPTION} states")
    return networks.eval()


def _damaged(path: Path, found: str) -> ValueError:
    return ValueError(
        f"{path} must be a whole file as pantomim writes it; got {found}. Copy the file again, or train the tokenizer "
        f"again with the run's config.yaml."
    )
