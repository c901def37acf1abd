"""Vision transformers as teachers: our own encoder, another library's network, or an EMA of the student."""

import copy
from collections import deque
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.precision import at_least_float32
from pantomim.formats.wrapped import LastBlocks, WrappedEncoder
from pantomim.nn.attention import Places
from pantomim.nn.blocks import Block
from pantomim.nn.momentum import EMACopy, Momentum, follow
from pantomim.nn.tokens import normalise_tokens
from pantomim.nn.vit import Encoder
from pantomim.teachers.base import Guidance, Query, Teacher

Output = Literal["block", "norm", "projection"]  # the last block's as it is, after the final norm, after a projection


class EncoderTeacher(Teacher):
    """A frozen network that sees every patch of the whole image.

    Args:
        encoder: On the student's grid, see `fitting`; it belongs to the teacher from then on. Our own may have fewer
            blocks than its config says, also none: then the features are projected patches with positions.
        name: What it is called in messages.
        output: Which of its outputs.
        blocks: Mean over the outputs of so many last blocks, each token of each standardised before; 1: the last alone.

    A ValueError, if there are fewer blocks, or there is no such output.

    Paper: Liu et al., *Exploring Target Representations for Masked Autoencoders*, arXiv:2209.03917: the last block
        before its norm, as in the authors' `models_mae.py`; Baevski et al., *data2vec*, arXiv:2202.03555, section 3.3:
        the mean over several blocks, each layer-normed without affine (eps 1e-5, as in the authors' code).
    """

    def __init__(
        self, encoder: Encoder | WrappedEncoder, name: str, *, output: Output = "block", blocks: int = 1
    ) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.name, self.output, self.blocks = name, output, blocks
        if isinstance(encoder, Encoder):
            ends: tuple[Output, ...] = ("block", "norm")
            there, attends = len(encoder.blocks), len(encoder.blocks) > 0
        else:
            ends, there, attends = encoder.ends, encoder.num_blocks, encoder.has_attention
        if output not in ends:
            raise ValueError(
                f"TeacherConfig.output must be {' or '.join(ends)} for {name}, which has no {output} to take features "
                f"from; got {output}."
            )
        if not 1 <= blocks <= max(there, 1):  # a network without blocks has one output all the same
            raise ValueError(
                f"TeacherConfig.blocks must be from 1 to the teacher's {there} blocks; got {blocks} of {name}. "
                f"Average over fewer blocks."
            )
        self.width = getattr(encoder, "projected" if output == "projection" else "width")
        self.grid, self.image_size = encoder.grid, encoder.image_size
        self.num_prefix = encoder.num_prefix if encoder.has_class_token else 0
        if attends:
            self.queries = ("class", "mean") if encoder.has_class_token else ("mean",)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B C H W"], query: Query | None = None) -> Guidance:
        """Features, and attention if asked for; see `Teacher.forward`."""
        self.check_query(query)
        encoder = self.encoder
        blocks = partial(last_blocks, encoder) if isinstance(encoder, Encoder) else encoder.last_blocks
        # Never in half precision on a CPU; on a GPU as the student, unless asked for float32.
        with torch.autocast(images.device.type if self.float32 else "cpu", enabled=False):
            if images.shape[2:] != self.image_size:
                images = F.interpolate(images, self.image_size, mode="bicubic", antialias=True)
            outputs, attention = blocks(images, self.blocks, query)
            tokens = mean_of_blocks(outputs)
            if self.output != "block":
                tokens = encoder.norm(tokens)
            if self.output == "projection":
                tokens = encoder.project(tokens)
        return Guidance(tokens[:, : encoder.num_prefix], tokens[:, encoder.num_prefix :], attention)


class EMATeacher(EncoderTeacher, EMACopy):
    """A moving average of the student: it begins as a copy, and keeps `momentum` of itself at every step of `steps`.

    What is fixed in the student, such as position tables, is copied and not averaged; so are buffers.
    """

    frozen = False

    def __init__(
        self,
        student: Encoder,
        momentum: Momentum,
        steps: int | None = None,
        name: str = "ema",
        *,
        output: Output = "block",
        blocks: int = 1,
    ) -> None:
        super().__init__(copy.deepcopy(student), name, output=output, blocks=blocks)
        self.momentum, self.steps = momentum, steps

    def update_ema(self, student: nn.Module, step: int) -> None:
        """Move towards the method's encoder, after optimiser step `step`."""
        follow(self.encoder, student.get_submodule("encoder"), self.momentum.at(step + 1, self.steps), buffers=True)

    def reset(self, student: nn.Module) -> None:
        """Begin again as a copy of the method's encoder."""
        follow(self.encoder, student.get_submodule("encoder"), 0.0, buffers=True)


def last_blocks(encoder: Any, images: Float[Tensor, "B C h w"], count: int, query: Query | None) -> LastBlocks:
    """Outputs of the last blocks of an `Encoder`, and the last one's attention, as `WrappedEncoder.last_blocks`."""
    attention = None
    tokens, places = encoder.enter(images)  # (B, P + N, D)
    outputs = deque([tokens], maxlen=count)
    for block in encoder.blocks:
        if query is not None and block is encoder.blocks[-1]:
            attention = attention_of(block, tokens, encoder.num_prefix, query, places)
        tokens, _ = block(tokens, places=places)
        outputs.append(tokens)
    return LastBlocks([*outputs], attention)


def attention_of(
    block: Block, tokens: Float[Tensor, "B T D"], num_prefix: int, query: Query, places: Places
) -> Float[Tensor, "B N"]:
    """How much the query attends to each patch in a block, mean over its heads; `tokens` are what the block gets.

    Only the rows that are asked for are computed: one for the class token; those of the patches for their mean.
    """
    rows = slice(0, 1) if query == "class" else slice(num_prefix, None)
    return block.attn.attend(block.norm1(tokens), rows, places).mean(dim=(1, 2))[:, num_prefix:]


def mean_of_blocks(outputs: list[Float[Tensor, "B T D"]]) -> Float[Tensor, "B T D"]:
    """One block's output as it is; of several, the mean, each token of each standardised before."""
    if len(outputs) == 1:
        return outputs[0]
    standardised = [normalise_tokens(at_least_float32(tokens), unbiased=False, eps=1e-5) for tokens in outputs]
    return torch.stack(standardised).mean(dim=0)
