"""The features after every block of any encoder: one after the other, before the final norm."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from pantomim.evaluate.features import AnyEncoder
from pantomim.formats.hf import HFEncoder
from pantomim.formats.wrapped import WrappedEncoder
from pantomim.nn.vit import Encoder, Features


def block_features(
    encoder: AnyEncoder, images: Float[Tensor, "B C H W"], need_attention: bool = False
) -> Iterator[Features]:
    """Tokens after each block and, if asked for, its attention; in evaluation mode, of images of the encoder's size."""
    if isinstance(encoder, Encoder):
        yield from encoder.each_block(images, need_attention=need_attention)
        return
    if "block" not in encoder.ends:
        raise ValueError(
            f"block_features.encoder must be a vision transformer with blocks; got {encoder.source}, of which only the "
            f"last features can be had. Choose another."
        )
    weights: list[Tensor] = []
    asks = need_attention and isinstance(encoder, HFEncoder)
    with _collecting(encoder, weights) if need_attention else nullcontext():
        outputs = encoder.last_blocks(images, encoder.num_blocks, "mean" if asks else None).tokens
    count = encoder.num_prefix + encoder.grid[0] * encoder.grid[1]
    square = (len(images), count, count)
    if need_attention and (len(weights) != len(outputs) or any((len(w), *w.shape[2:]) != square for w in weights)):
        raise ValueError(
            f"block_features.encoder must show what each block attends to; got {encoder.source}, which keeps its "
            f"attention to itself. Choose a plain vision transformer."
        )
    for number, tokens in enumerate(outputs):
        prefix, patches = tokens[:, : encoder.num_prefix], tokens[:, encoder.num_prefix :]
        yield Features(prefix, patches, weights[number] if need_attention else None)


@contextmanager
def _collecting(encoder: WrappedEncoder, weights: list[Tensor]) -> Iterator[None]:
    """Collect the attention of each block while the network runs; it is left as it was."""
    with ExitStack() as undo:

        def hook(module: nn.Module, attention_of: Callable[[Any], list[Tensor]]) -> None:
            handle = module.register_forward_hook(lambda _module, _given, output: weights.extend(attention_of(output)))
            undo.callback(handle.remove)

        def change(owner: object, name: str, value: object) -> None:
            undo.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)

        if isinstance(encoder, HFEncoder):
            change(encoder.model.config, "_attn_implementation", "eager")  # fused kernels compute no weights
            hook(encoder.model, lambda output: [w for w in output.attentions or () if w is not None])
        else:
            for block in encoder.model.blocks:
                attention: Any = getattr(block, "attn", None)
                if hasattr(attention, "fused_attn"):  # timm's, unfused, hands its weights to a dropout
                    change(attention, "fused_attn", False)
                    hook(attention.attn_drop, lambda output: [output])
        yield
