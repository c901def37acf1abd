"""One way to name a tokenizer: a run, a file, the published DALL-E files, or a random projection."""

from pathlib import Path

from pantomim.formats.dalle import load_dalle
from pantomim.formats.native import load_networks
from pantomim.nn.dvae import DVAEDecoder, DVAEEncoder
from pantomim.nn.vqkd import VQKDNetworks
from pantomim.tokenizers.base import Tokenizer
from pantomim.tokenizers.dvae import DVAETokenizer
from pantomim.tokenizers.random_projection import RandomProjectionTokenizer
from pantomim.tokenizers.vqkd import VQKDTokenizer

WAYS = (
    "Ways to get one: `pantomim tokenizer train` and its RUN folder (or RUN/tokenizer.safetensors); "
    "dalle:FILE or dalle:FOLDER with the published encoder.pkl (and decoder.pkl); random-projection or "
    "random-projection-standardised, which need no training"
)
PROJECTIONS = {"random-projection": False, "random-projection-standardised": True}  # and whether they standardise


def load_tokenizer(
    spec: str | Path | None, *, patch_size: int = 16, in_chans: int = 3, vocabulary: int = 8192, float16: bool = False
) -> Tokenizer:
    """A frozen tokenizer, in evaluation mode; see `resized.on_grid` for one id a patch.

    Args:
        spec: "RUN", a run folder, or its tokenizer.safetensors; "dalle:FILE", an encoder alone, or "dalle:FOLDER" with
            encoder and decoder (.pkl, .safetensors or .pth); "random-projection" or
            "random-projection-standardised", each also with ":SEED".
        patch_size: Of a random projection, as what follows.
        in_chans: Channels.
        vocabulary: Number of ids.
        float16: On a GPU in float16, but for the last layer; a random projection has no other.
    """
    name = str(spec or "")
    if not name:
        raise ValueError(f"tokenizer must be given, as there is no default; got none. {WAYS}.")
    if name.startswith("dalle:"):
        return _dalle(Path(name.removeprefix("dalle:")), float16).eval()
    if name.startswith("random-projection"):
        kind, _, seed = name.partition(":")
        if kind not in PROJECTIONS or (seed and not seed.isdecimal()):
            raise ValueError(
                f"tokenizer must be {' or '.join(PROJECTIONS)}, or with :SEED, a whole number; got {name}."
            )
        return RandomProjectionTokenizer(patch_size, in_chans, vocabulary, int(seed or 0), PROJECTIONS[kind]).eval()
    path = Path(name)
    if path.is_file() and path.name == "tokenizer.safetensors":
        path = path.parent
    if not path.is_dir():
        raise ValueError(f"tokenizer must be something that there is; got {name}. {WAYS}.")
    networks = load_networks(path)
    if isinstance(networks, VQKDNetworks):
        return VQKDTokenizer(networks, float16=float16).eval()
    return DVAETokenizer(networks.encoder, networks.decoder, float16=float16).eval()


def _dalle(path: Path, float16: bool) -> DVAETokenizer:
    """The published networks: one file has the encoder alone, a folder may have both."""
    if not path.is_dir():
        return DVAETokenizer(load_dalle(DVAEEncoder, path), float16=float16)
    found: dict[str, Path] = {}
    for name in ("encoder", "decoder"):
        files = [path / f"{name}.{ending}" for ending in ("pkl", "safetensors", "pth")]
        files = [file for file in files if file.is_file()]
        if len(files) > 1:
            raise ValueError(
                f"dalle:FOLDER must hold one {name}; got {', '.join(file.name for file in files)} in {path}. "
                f"Remove all but one."
            )
        if files:
            found[name] = files[0]
    if "encoder" not in found:
        raise ValueError(f"dalle:FOLDER must hold encoder.pkl (or .safetensors, .pth); got {path} without. {WAYS}.")
    decoder = load_dalle(DVAEDecoder, found["decoder"]) if "decoder" in found else None
    return DVAETokenizer(load_dalle(DVAEEncoder, found["encoder"]), decoder, float16=float16)
