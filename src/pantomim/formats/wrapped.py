"""Networks of other libraries behind an encoder's interface; they run on whole images only."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pantomim.core.scales import BYTES, Scale
from pantomim.nn.resize import adapted_encoder
from pantomim.nn.tokens import AnyImages, as_map, channel_values, normalised
from pantomim.nn.vit import Encoder, Features, Interpolation, block_numbers

End = Literal["block", "norm", "projection"]
Query = Literal["class", "mean"]


class LastBlocks(NamedTuple):
    """Outputs of the last blocks of a network, before its final norm."""

    tokens: list[Float[Tensor, "B T D"]]  # all of them, prefix first; the last block comes last
    attention: Float[Tensor, "B N"] | None = None  # of the query to each patch, mean over heads; where asked for


class WrappedEncoder(nn.Module, ABC):
    """A network of another library without its head, named `source` by users; it standardises images itself."""

    mean: Tensor
    std: Tensor
    projection: Float[Tensor, "D K"] | None
    width: int
    grid: tuple[int, int]
    num_prefix: int
    has_class_token: bool
    num_blocks: int  # whose outputs can be had
    has_blocks: bool = True
    has_attention: bool = False
    scale: Scale | None = BYTES  # of the images that its weights were trained on
    transform: Any = None  # from pictures to its images, of one that `pantomim.load` gave
    interpolation: Interpolation | None = None  # how the images that it was trained on were resized, if known

    def __init__(
        self,
        model: nn.Module,
        source: str,
        image_size: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        projection: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.model: Any = model.eval()
        self.source, self.image_size, self.in_chans = source, image_size, len(mean)
        self.standardise_by(mean, std)
        self.register_buffer("projection", projection)
        self.projected = None if projection is None else projection.shape[1]

    @abstractmethod
    def last_blocks(self, images: AnyImages, count: int = 1, query: Query | None = None) -> LastBlocks:
        """Outputs of the last `count` blocks for scaled images; attention only where `has_attention`."""

    @abstractmethod
    def norm(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """The final norm, of all tokens; CLIP itself has it of the class token alone."""

    @abstractmethod
    def untrained(self) -> "WrappedEncoder":
        """The same network with initial weights, drawn from torch's global generator."""

    @abstractmethod
    def trainable(self) -> Encoder:
        """Our encoder of the same features, without a projection; a ValueError says what is in the way."""

    @abstractmethod
    def _resize(self, image_size: tuple[int, int]) -> Self: ...

    def project(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B T K"]:
        """The projection after the final norm, of all tokens."""
        assert self.projection is not None
        return tokens @ self.projection

    def resized(self, image_size: tuple[int, int]) -> Self:
        """The same network for images of another size, its positions resampled as its library does it."""
        if image_size == self.image_size:
            return self
        try:
            resized = self._resize(image_size)
        except (AssertionError, RuntimeError, ValueError) as error:  # what the libraries raise for a size they refuse
            raise one_size(self.source, self.image_size, image_size) from error
        resized.mean, resized.std, resized.interpolation = self.mean, self.std, self.interpolation
        return resized

    @property
    def ends(self) -> tuple[End, ...]:
        """What can be had of the last block."""
        blocks: tuple[End, ...] = ("block", "norm") if self.has_blocks else ("norm",)
        return blocks if self.projection is None else (*blocks, "projection")

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel."""
        return tuple(self.mean.tolist()), tuple(self.std.tolist())

    @property
    def stride(self) -> tuple[int, int]:
        """Pixels of a patch, along each side."""
        return self.image_size[0] // self.grid[0], self.image_size[1] // self.grid[1]

    def standardise_by(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Use another mean and standard deviation from now on."""
        for name, values in (("mean", mean), ("std", std)):
            buffer = channel_values(f"{type(self).__name__}.{name}", values, self.in_chans)
            self.register_buffer(name, buffer, persistent=False)

    def standardised(self, images: AnyImages) -> Float[Tensor, "B C H W"]:
        """Scaled images as the network takes them."""
        return normalised(self, images, next(self.model.parameters()).dtype)

    def forward(self, images: AnyImages, ids_keep: Int[Tensor, "B V"] | None = None) -> Features:
        """Encode whole images, scaled but not normalised; after the final norm."""
        if ids_keep is not None:
            raise ValueError(
                f"{type(self).__name__}.ids_keep must be None; {self.source} runs on whole images. Choose a plain "
                f"vision transformer."
            )
        tokens = self.norm(self.last_blocks(images).tokens[-1])
        return Features(tokens[:, : self.num_prefix], tokens[:, self.num_prefix :])

    def forward_intermediates(
        self,
        images: AnyImages,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """As `Encoder.forward_intermediates`; of a network without known blocks, its output is that of the only one."""
        chosen, found = block_numbers(indices, self.num_blocks), list[Any]()
        outputs = self.last_blocks(images, self.num_blocks - min(chosen)).tokens
        for number in sorted(chosen):
            tokens = outputs[number - min(chosen)]
            tokens = self.norm(tokens) if norm else tokens
            prefix, patches = tokens[:, : self.num_prefix], tokens[:, self.num_prefix :]
            patches = as_map(patches, self.grid) if output_fmt == "NCHW" else patches
            found.append((patches, prefix) if return_prefix_tokens and self.num_prefix else patches)
        end = outputs[max(chosen) - min(chosen)] if stop_early else outputs[-1]
        return found if intermediates_only else (self.norm(end), found)

    def _blank(self) -> Float[Tensor, "1 C H W"]:
        """One image of zeros, to read sizes of outputs from."""
        like = next(self.model.parameters())
        return torch.zeros(1, self.in_chans, *self.image_size, dtype=like.dtype, device=like.device)

    def _to_patches(self, weights: Float[Tensor, "B heads Q T"]) -> Float[Tensor, "B N"]:
        return weights.mean(dim=(1, 2))[:, self.num_prefix :]

    def _rows(self, query: Query) -> slice:
        """The tokens that attend: the class token, or all patches."""
        return slice(0, 1) if query == "class" else slice(self.num_prefix, None)


def resized_encoder(encoder: Encoder | WrappedEncoder, image_size: tuple[int, int]) -> Encoder | WrappedEncoder:
    """The same encoder for images of another size, its tables of positions resampled; evaluation mode."""
    if image_size == encoder.image_size:
        return encoder.eval()
    check_cells(encoder, image_size)
    if isinstance(encoder, WrappedEncoder):
        return encoder.resized(image_size).to(next(encoder.parameters()).device).eval()
    return adapted_encoder(encoder, replace(encoder.config, image_size=image_size))


def check_cells(encoder: Encoder | WrappedEncoder, image_size: tuple[int, int]) -> None:
    """Refuse a size with half a patch at the border, which some networks would cut off in silence."""
    cells = encoder.stride
    fitting = [max(round(side / cell), 1) * cell for side, cell in zip(image_size, cells, strict=True)]
    if any(side < 1 or side % cell for side, cell in zip(image_size, cells, strict=True)):
        raise ValueError(
            f"Encoder.image_size must be a multiple of the patches of {getattr(encoder, 'source', 'the encoder')}, "
            f"{cells[0]} x {cells[1]} pixels; got {image_size[0]} x {image_size[1]}. Choose {fitting[0]} {fitting[1]}: "
            f"images are then resized."
        )


def one_size(source: str, image_size: tuple[int, int], asked: tuple[int, int]) -> ValueError:
    """The error of a network that is made for one size."""
    return ValueError(
        f"{source} must see images at {image_size[0]} x {image_size[1]}, the size it is made for; got {asked[0]} x "
        f"{asked[1]}. Choose a plain vision transformer, or images and patches that give its grid."
    )


def missing_extra(source: str, extra: str) -> ValueError:
    """The error of a source whose library is not installed."""
    return ValueError(
        f"{source} must be read by a library that is not installed. Run `pip install 'pantomim[{extra}]'`, or choose "
        f"another source, such as timm:NAME."
    )
