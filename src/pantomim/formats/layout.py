"""What the layouts of other projects share: the interface of one, and a file whose tensors are found by our names.

Sizes are read off the shapes, and then every name and shape must be the one of that network. Weights do not tell the
number of heads, which is known for the published widths.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pantomim.core.modes import initial_weights_unused
from pantomim.formats.files import key_report
from pantomim.formats.native import exact_ratio
from pantomim.nn.decoder import MAEDecoder
from pantomim.nn.heads import Classifier
from pantomim.nn.relative import CLASS_ROWS
from pantomim.nn.vit import Encoder, EncoderConfig, Position

LOG = logging.getLogger(__name__)
ASSUMED = (
    "%s does not tell all: it is read as %s file, with %d heads, mean %s, std %s and images of 8 bits. A file of a run "
    "needs its .json beside it; timm's are timm:NAME@FILE; `pantomim import` takes other values."
)
NAMED = 10  # tensors, when a file is refused
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHARED = "encoder.rel_pos_bias.relative_position_bias_table"
OWN = "encoder.blocks.0.attn.relative_position_bias_table"


@dataclass(frozen=True)
class Given:
    """What a file cannot tell; None: published heads, square images, ImageNet's mean and std."""

    heads: int | None = None
    decoder_heads: int | None = None
    image_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


AS_PUBLISHED = Given()


@dataclass(frozen=True)
class Found:
    """What a file holds, as our modules in evaluation mode, with the position tables of the file."""

    format: "Format"
    kind: Literal["encoder", "encoder and decoder", "classifier"]
    encoder: Encoder  # without a final norm where a classifier has mean pooling
    decoder: MAEDecoder | None = None
    classifier: Classifier | None = None
    predictor: Mapping[str, Tensor] | None = None  # what BEiT or CAE learned beside the encoder, by the method's names
    left_out: tuple[str, ...] = ()  # names of tensors that are no part of a network
    notes: tuple[str, ...] = ()  # for the report


class Format(ABC):
    """One checkpoint layout; `formats.FORMATS` lists them."""

    name: ClassVar[str]  # what `pantomim import` takes
    owner: ClassVar[str]  # whose they are with an article, for messages
    advice: ClassVar[str]  # what to do with a file of another layout

    @abstractmethod
    def recognises(self, names: Set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether a file has this layout, by the names and shapes of its tensors; no two layouts take the same file."""

    @abstractmethod
    def read(self, weights: Mapping[str, Tensor], source: str, given: Given) -> Found:
        """The modules of a file; every name and shape must be right, and all that weights do not tell be given."""

    def complete(self, given: Given, content: Any) -> Given:
        """What is given, completed by what a checkpoint's other entries tell."""
        return given

    def to_encoder(self, weights: Mapping[str, Tensor], source: str, given: Given) -> Encoder:
        """The encoder of a file, in evaluation mode; that of a classifier only if it has its final norm."""
        found = self.read(weights, source, given)
        if found.classifier is not None and found.classifier.pool == "mean":
            raise ValueError(
                f"{source} must hold an encoder with its final norm; got a classifier with mean pooling, which has "
                f"none. Use the pre-training file, or `pantomim import` for the classifier as a whole."
            )
        return found.encoder


@dataclass(frozen=True)
class ForeignFile:
    """The tensors of a file by our names; each method raises ValueError if it does not find what it is to read."""

    weights: Mapping[str, Tensor]  # by the file's names
    source: str
    format: Format
    given: Given
    name: Callable[[str], str]  # the file's name of one of ours, which begin with the part: encoder., decoder., head.

    def has(self, ours: str) -> bool:
        """Whether there is such a tensor."""
        return self.name(ours) in self.weights

    def has_part(self, parts: Set[str]) -> bool:
        """Whether some name in the file has one of these before its first dot."""
        return any(name.partition(".")[0] in parts for name in self.weights)

    def telling(self, ours: str, dimensions: int) -> Tensor:
        """A tensor of so many dimensions, whose shape tells a size."""
        tensor = self.weights.get(name := self.name(ours))
        if tensor is None or tensor.dim() != dimensions:
            raise self.refused(f"no {name} of {dimensions} dimensions")
        return tensor

    def depth(self, blocks: str) -> int:
        """How many blocks there are; `fill` finds a gap between their numbers."""
        theirs = self.name(blocks)
        return len({name.removeprefix(theirs).partition(".")[0] for name in self.weights if name.startswith(theirs)})

    def mlp_ratio(self, blocks: str, width: int) -> float:
        """The hidden width of the blocks' MLPs over the width."""
        return exact_ratio(len(self.telling(f"{blocks}0.mlp.fc1.weight", 2)), width)

    def heads(self, field: Literal["heads", "decoder_heads"], width: int, known: Mapping[int, int]) -> int:
        """Attention heads: those given, or those of the published width."""
        heads: int | None = getattr(self.given, field) or known.get(width)
        if heads is None:
            raise ValueError(
                f"{self.source}: {field} must be given for width {width}; known are "
                f"{', '.join(map(str, sorted(known)))}. Weights do not tell the number of heads."
            )
        return heads

    def encoder_config(self, known_heads: Mapping[int, int], position: Position, **settings: Any) -> EncoderConfig:
        """The sizes of the encoder, with the settings that its project always has."""
        width, in_chans, patch_size, _ = self.telling("encoder.patch_embed.proj.weight", 4).shape
        if position != "none":
            self.telling("encoder.pos_embed", 3)
        mean, std = self.given.mean, self.given.std
        if (mean is None) != (std is None) or (in_chans != 3 and mean is None):
            raise ValueError(
                f"{self.source}: mean and std must both be given for {in_chans} channels; got {mean} and {std}. "
                f"Pass the values of the data that the encoder was trained on."
            )
        config = EncoderConfig(
            image_size=self.given.image_size or (self._side() * patch_size,) * 2,
            patch_size=patch_size,
            in_chans=in_chans,
            width=width,
            depth=self.depth("encoder.blocks."),
            heads=self.heads("heads", width, known_heads),
            mlp_ratio=self.mlp_ratio("encoder.blocks.", width),
            position=position,
            mean=mean or IMAGENET_MEAN,
            std=std or IMAGENET_STD,
            **settings,
        )
        if mean is None or self.given.heads is None:
            # of classifiers on the class token none is the authors', but timm's and ours may be read as theirs
            level = logging.WARNING if position == "learned" and not self.has("fc_norm.weight") else logging.INFO
            LOG.log(level, ASSUMED, self.source, self.format.owner, config.heads, config.mean, config.std)
        return config

    def _side(self) -> int:
        """Patches along a side of a square image, from absolute or relative positions."""
        table = next((self.telling(name, 2) for name in (SHARED, OWN) if self.has(name)), None)
        why = "where there are no positions; got none"
        if self.has("encoder.pos_embed"):
            patches = self.telling("encoder.pos_embed", 3).shape[1] - 1  # without the class token's row
            if (side := math.isqrt(patches)) ** 2 == patches:
                return side
            why = f"for a grid that is not square; got {patches} patches"
        elif table is not None:
            offsets = len(table) - CLASS_ROWS  # along each axis from 1 - side to side - 1
            if (2 * (side := (math.isqrt(max(offsets, 0)) + 1) // 2) - 1) ** 2 == offsets:
                return side
            why = f"for a grid that is not square; got {offsets} offsets"
        raise ValueError(f"{self.source}: image_size must be given {why}. Pass height and width in pixels.")

    def classifier(self, encoder: Encoder, *, learn_positions: bool = True) -> Classifier:
        """The classifier around an encoder, with the file's weights; the norm's name tells the pooling."""
        num_classes = len(self.telling("head.weight", 2))
        pool: Literal["mean", "class"] = "mean" if self.has("fc_norm.weight") else "class"
        with initial_weights_unused():
            classifier = Classifier(encoder, num_classes, pool, learn_positions=learn_positions)
        parts = {"encoder": classifier.encoder, "head": classifier.head}
        self.fill(parts | ({"fc_norm": classifier.fc_norm} if pool == "mean" else {}), "classifier")
        return classifier.eval()

    def fill(self, parts: Mapping[str, nn.Module], kind: str) -> None:
        """Fill the parts with all tensors of the file; float64 weights make float64 modules."""
        whole = nn.ModuleDict(parts)
        theirs = {name: self.name(name) for name in whole.state_dict()}
        if report := key_report({theirs[name]: t for name, t in whole.state_dict().items()}, self.weights):
            raise ValueError(
                f"{self.source} must be {self.format.owner} {kind}, as it seems by its names; got {report}. "
                f"{self.format.advice}"
            )
        if all(tensor.dtype == torch.float64 for tensor in self.weights.values()):
            whole.double()
        whole.load_state_dict({ours: self.weights[name] for ours, name in theirs.items()})
        whole.eval()

    def without(self, left_out: Set[str]) -> "ForeignFile":
        """The same file without some of its tensors."""
        return replace(self, weights={name: t for name, t in self.weights.items() if name not in left_out})

    def refused(self, why: str) -> ValueError:
        """Why a file is not read, with the first of its names."""
        return ValueError(
            f"{self.source} must have {self.format.owner} layout (encoder, encoder and decoder, or classifier); got "
            f"{why}. {self.format.advice} It holds {first_names(self.weights)}."
        )


def first_names(weights: Mapping[str, Tensor]) -> str:
    """How many tensors there are, and what the first are called."""
    more = f" and {len(weights) - NAMED} more" if len(weights) > NAMED else ""
    return f"{len(weights)} tensors: {', '.join(sorted(weights)[:NAMED])}{more}"
