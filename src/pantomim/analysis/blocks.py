"""The features after every block of any encoder: one after the other, before the final norm."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from pantomim.formats.wrapped import WrappedEncoder
from pantomim.nn.vit import Encoder, Features


def block_features(
    encoder: Encoder | WrappedEncoder, images: Float[Tensor, "B C H W"], need_attention: bool = False
) -> Iterator[Features]:
    """Prefix tokens and patches after each block and, if asked for, its softmaxed attention, prefix tokens first.

    Args:
        encoder: In evaluation mode.
        images: Scaled, of the encoder's size.
        need_attention: Whether the attention is asked for.

    Raises:
        ValueError: if a network of another library gives only its last features, or no attention.
    """
    if isinstance(encoder, Encoder):
        yield from encoder.each_block(images, need_attention=need_attention)
        return
    if "block" not in encoder.ends:
        raise ValueError(
            f"block_features.encoder must be a vision transformer whose blocks can be asked; got {encoder.source}, "
            f"which tells its last features only. Choose another."
        )
    weights: list[Tensor] = []
    with _collecting(encoder, weights) if need_attention else nullcontext():
        outputs = encoder.last_blocks(images, encoder.num_blocks).tokens
    count = encoder.num_prefix + encoder.grid[0] * encoder.grid[1]
    square = (len(images), count, count)
    if need_attention and (
        len(weights) != len(outputs) or any(w.dim() != 4 or (w.shape[0], *w.shape[2:]) != square for w in weights)
    ):
        raise _no_attention(encoder)
    for number, tokens in enumerate(outputs):
        prefix, patches = tokens[:, : encoder.num_prefix], tokens[:, encoder.num_prefix :]
        yield Features(prefix, patches, weights[number] if need_attention else None)


def num_blocks(encoder: Encoder | WrappedEncoder) -> int:
    """How many blocks `block_features` gives."""
    return encoder.depth if isinstance(encoder, Encoder) else encoder.num_blocks


def patch_sides(encoder: Encoder | WrappedEncoder) -> tuple[float, float]:
    """Height and width of a patch, in pixels."""
    (height, width), (rows, cols) = encoder.image_size, encoder.grid
    return height / rows, width / cols


@contextmanager
def _collecting(encoder: WrappedEncoder, weights: list[Tensor]) -> Iterator[None]:
    """Collect the attention of each block while the network runs; it is left as it was."""
    model: Any = encoder.model
    blocks = getattr(model, "blocks", None)
    blocks = model.get_submodule(encoder.blocks_name) if blocks is None else blocks
    with ExitStack() as hooks:
        for block in blocks:
            if hasattr(getattr(block, "attn", None), "fused_attn"):
                hooks.enter_context(_timm_attention(encoder, block.attn, weights))
            else:
                hooks.enter_context(_returned_attention(block, weights))
        yield


@contextmanager
def _timm_attention(encoder: WrappedEncoder, attention: Any, weights: list[Tensor]) -> Iterator[None]:
    """Timm's attention without its fused kernel hands what it attends to to a dropout."""
    if not isinstance(getattr(attention, "attn_drop", None), nn.Module):
        raise _no_attention(encoder)
    fused, attention.fused_attn = attention.fused_attn, False
    hook = attention.attn_drop.register_forward_hook(lambda _module, _given, found: weights.append(found))
    try:
        yield
    finally:
        hook.remove()
        attention.fused_attn = fused


@contextmanager
def _returned_attention(block: nn.Module, weights: list[Tensor]) -> Iterator[None]:
    """The attention of transformers, brought to compute its weights, returns them beside its output."""
    found: list[Tensor] = []

    def collect(_module: nn.Module, _given: Any, output: Any) -> None:
        if isinstance(output, tuple) and len(output) > 1 and isinstance(output[1], Tensor) and output[1].dim() == 4:
            found.append(output[1])

    parts: list[Any] = [part for part in block.modules() if hasattr(part, "config")]
    configs = [part.config for part in parts]
    hooks = [part.register_forward_hook(collect) for part in block.modules()]
    hooks.append(block.register_forward_hook(lambda _module, _given, _output: weights.extend(found[:1])))
    for part, config in zip(parts, configs, strict=True):
        part.config = copy.deepcopy(config)
        part.config._attn_implementation = "eager"
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for part, config in zip(parts, configs, strict=True):
            part.config = config


def _no_attention(encoder: WrappedEncoder) -> ValueError:
    return ValueError(
        f"block_features.encoder must show what each block attends to; got {encoder.source}, which keeps its attention "
        f"to itself. Choose a plain vision transformer."
    )
