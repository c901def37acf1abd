"""What leaves: an encoder, a classifier or a segmenter, with what is known of it, and images to try it on."""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pantomim.core.modes import initial_weights_unused
from pantomim.core.reading import read_yaml
from pantomim.data.dataset import Dataset, evenly_spaced
from pantomim.data.masks import read_masked
from pantomim.data.record import RECORD, read_record
from pantomim.data.sources import open_source, open_split, read_contents
from pantomim.data.stats import check_scale
from pantomim.data.stream import evaluation_batches
from pantomim.formats import native
from pantomim.formats.native import CLASSIFIER, ENCODER, SEGMENTER, read_description
from pantomim.formats.transform import Transform
from pantomim.formats.wrapped import WrappedEncoder, check_cells, resized_encoder
from pantomim.nn.heads import Classifier, Pool
from pantomim.nn.resize import adapt_encoder_weights
from pantomim.nn.segmenter import Segmenter
from pantomim.nn.tokens import enlarge
from pantomim.nn.vit import Encoder, Interpolation

LOG = logging.getLogger(__name__)
NUM_IMAGES = 12
KINDS: dict[str, Callable[[Mapping[str, Any]], Any]] = {  # the network of a folder is the first that is there
    CLASSIFIER: native.build_classifier,
    SEGMENTER: native.build_segmenter,
    ENCODER: native.build_encoder,
}
TESTED: dict[str, Interpolation] = {CLASSIFIER: "bicubic", SEGMENTER: "bilinear"}


class Outputs(nn.Module):
    """A network whose outputs have names: "prefix" where there is one, and "patches"; or "logits", of a pixel each."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.names = ("prefix", "patches") if getattr(network, "num_prefix", 0) else ("patches",)
        if isinstance(network, Classifier | Segmenter):
            self.names = ("logits",)

    def forward(self, images: Float[Tensor, "B C H W"]) -> tuple[Tensor, ...]:
        """Of scaled images, which are standardised within."""
        output = self.network(images)
        if isinstance(self.network, Segmenter):
            output = enlarge(output, images.shape[2:])
        return (output,) if isinstance(output, Tensor) else tuple(getattr(output, name) for name in self.names)


@dataclass(frozen=True)
class Network:
    """A network in evaluation mode and float32."""

    spec: str
    kind: str  # "encoder", "classifier" or "segmenter"
    module: Any
    folder: Path | None = None  # of our files
    about: Mapping[str, Any] = field(default_factory=dict)  # what is stated beside the weights

    @property
    def encoder(self) -> Encoder | WrappedEncoder:
        """The encoder itself, or that of the network."""
        found: Encoder | WrappedEncoder = self.module if self.kind == ENCODER else self.module.encoder
        return found

    @property
    def transform(self) -> Transform:
        """From pictures to what the network takes; classifiers and segmenters resize as their tests do."""
        return Transform.of(self.encoder, TESTED.get(self.kind), float(self.about.get("test_margin", 1.0)))

    @property
    def pool(self) -> Pool | None:
        """How a classifier pools; None: of another network."""
        return self.module.pool if isinstance(self.module, Classifier) else None

    def split(self, tokens: Float[Tensor, "B T D"]) -> tuple[Tensor, ...]:
        """An encoder's tokens as `Outputs` gives them."""
        prefix = self.encoder.num_prefix
        return (tokens[:, :prefix], tokens[:, prefix:]) if prefix else (tokens,)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the logits; their numbers where they have none."""
        count = self.about.get(self.kind, {}).get("num_classes", 0)
        return list(self.about.get("classes") or map(str, range(count)))


def open_network(
    spec: str | Path, load_encoder: Callable[[str | Path], Any], image_size: tuple[int, int] | None = None
) -> Network:
    """The network of a run (its head, if it has one), of a file of ours, or of others, as ours where it can be."""
    path = Path(spec)
    is_file = path.suffix == ".safetensors" and path.stem in KINDS and path.with_suffix(".json").is_file()
    folder, kinds = (path.parent, (path.stem,)) if is_file else (path, tuple(KINDS))
    kind = next((kind for kind in kinds if (folder / f"{kind}.json").is_file()), None)
    if kind is None:
        encoder = load_encoder(spec)
        if isinstance(encoder, WrappedEncoder):
            with suppress(ValueError):  # what cannot become ours leaves as it is, where it can
                scale, encoder = encoder.scale, encoder.trainable()
                encoder.scale = scale
        network = Network(str(spec), ENCODER, encoder)
    else:
        network = Network(
            str(spec), kind, native.fill_pair(folder, kind, KINDS[kind]), folder, read_description(folder, kind)
        )
    if image_size is not None:
        network = replace(network, module=_resized(network, image_size))
    return replace(network, module=network.module.float().eval())


def _resized(network: Network, image_size: tuple[int, int]) -> Any:
    """The network for images of another size, positions resampled."""
    if network.kind == ENCODER:
        return resized_encoder(network.module, image_size)
    encoder = network.module.encoder
    check_cells(encoder, image_size)
    config = replace(encoder.config, image_size=image_size)
    with initial_weights_unused():
        resized = KINDS[network.kind]({**network.about, "encoder": asdict(config)})
    adapted, _ = adapt_encoder_weights(encoder.state_dict(), encoder.config, config)
    weights = network.module.state_dict() | {f"encoder.{name}": weight for name, weight in adapted.items()}
    resized.to(encoder.mean.dtype).load_state_dict(weights)
    resized.encoder.scale = encoder.scale
    return resized


def facts(network: Network) -> dict[str, Any]:
    """What a user of a file must know, as plain values."""
    transform, (mean, std) = network.transform, network.encoder.statistics
    shape = f"B, {', '.join(map(str, (transform.channels, *transform.image_size)))}"
    rule = "of the scale of training" if transform.scale is None else f"stored values / {transform.scale.divisor:g}"
    found = {
        "made_by": f"pantomim {version('pantomim')}",
        "network": network.kind,
        "images": f"float32 ({shape}): {rule}",
        "normalisation": "inside: the network subtracts mean and divides by std",
        "mean": list(mean),
        "std": list(std),
        "resizing": f"{transform.interpolation} to {transform.resized[0]} x {transform.resized[1]}, then the centre",
    }
    if network.classes:
        found["classes"] = network.classes
    told = ("class_ids", "no_class", "test_size", "stride")
    return found | {name: network.about[name] for name in told if network.kind == SEGMENTER and name in network.about}


def images_to_try(network: Network, images: str | None) -> tuple[Float[Tensor, "B C h w"], str]:
    """Images that the network takes, and what they are: of a source, else of the run's data, else drawn."""
    transform = network.transform
    given = transform.divisor if transform.scale is not None and transform.scale.given else None
    try:
        dataset = _data_of(network.folder) if images is None else open_source(images, "all", given)
        if dataset.channels != transform.channels:
            raise ValueError(
                f"export.images must have {transform.channels} channel(s), as the network takes; got "
                f"{dataset.channels} in {dataset.spec}. Name others."
            )
        check_scale(network.module, dataset)
        chosen = evenly_spaced(len(dataset), NUM_IMAGES)
        how: dict[str, Any] = {"indices": chosen, "margin": transform.margin}
        found = torch.cat([batch for batch, _ in evaluation_batches(dataset, transform.image_size, 12, "cpu", **how)])
        if transform.divisor == 255:  # whole ones, as image processors take them
            found = (found.clamp(0, 1) * 255).round() / 255
        return found.contiguous(), f"{len(found)} images of {dataset.name}"
    except (ValueError, OSError) as error:
        if images is not None:
            raise
        LOG.warning("No images of the run to compare on: %s", error)  # apart from words that are published
        return _drawn(transform), f"{NUM_IMAGES} drawn images, which are no photographs"


def _data_of(folder: Path | None) -> Dataset:
    if folder is None or not (folder / "config.yaml").is_file():
        raise ValueError("there is no run whose images could be read; name some as export.images")
    data = read_yaml(folder / "config.yaml")["data"]
    record = read_record(folder) if (folder / RECORD).is_file() else None
    source = data["source"] if record is None else record.source
    masks = data.get("masks")
    contents = read_contents(source) if masks is None else read_masked(source, masks["name"])[0]
    return open_split(replace(contents, scale=data.get("scale")), source, "all")


def _drawn(transform: Transform) -> Float[Tensor, "B C h w"]:
    """Smooth patterns with noise, as 8-bit images have them."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(NUM_IMAGES, transform.channels, 4, 4, generator=generator)
    noise = torch.rand(NUM_IMAGES, transform.channels, *transform.image_size, generator=generator)
    return ((enlarge(coarse, transform.image_size) * 0.8 + noise * 0.2) * 255).round() / 255
