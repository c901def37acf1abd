"""Our own encoder as a teacher: it sees every patch of the whole image, and is frozen or an EMA of the student."""

import copy
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.precision import at_least_float32
from pantomim.nn.blocks import Block
from pantomim.nn.momentum import EMACopy, Momentum, follow
from pantomim.nn.tokens import normalise_tokens
from pantomim.nn.vit import Encoder
from pantomim.teachers.base import Guidance, Query, Teacher

Output = Literal["block", "norm", "projection"]


class EncoderTeacher(Teacher):
    """A frozen `Encoder`.

    Args:
        encoder: On the student's grid, see `fitting.fit_encoder`; it belongs to the teacher from then on. It may have
            fewer blocks than its config says, also none: then the features are projected patches with positions.
        name: What it is called in messages.
        output: The last block's output as it is ("block"), or after the encoder's final norm ("norm").
        blocks: Mean over the outputs of so many last blocks, each token of each standardised before; 1: the last alone.

    Raises:
        ValueError: if the encoder has fewer blocks, or has no such output.

    Paper: Liu et al., *Exploring Target Representations for Masked Autoencoders*, arXiv:2209.03917: the last block
        before its norm, as in the authors' `models_mae.py`; Baevski et al., *data2vec*, arXiv:2202.03555, section 3.3:
        the mean over several blocks, each layer-normed without affine (eps 1e-5, as in the authors' code).
    """

    def __init__(self, encoder: Encoder, name: str, *, output: Output = "block", blocks: int = 1) -> None:
        super().__init__()
        check_blocks(name, blocks, len(encoder.blocks))
        if output == "projection":
            raise ValueError(
                f"TeacherConfig.output must be block or norm for {name}, which has no projection; got projection. "
                f"CLIP's image towers have one."
            )
        self.encoder, self.name, self.output, self.blocks = encoder, name, output, blocks
        self.width, self.grid, self.image_size = encoder.width, encoder.grid, encoder.image_size
        self.num_prefix = encoder.num_prefix if encoder.config.class_token else 0
        if len(encoder.blocks):
            self.queries = ("class", "mean") if encoder.config.class_token else ("mean",)
        self._freeze()

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B C H W"], query: Query | None = None) -> Guidance:
        """Features, and attention if asked for; see `Teacher.forward`."""
        self.check_query(query)
        encoder, number, attention = self.encoder, len(self.encoder.blocks), None
        outputs: list[Tensor] = []
        # Never in half precision on a CPU; on a GPU as the student, unless asked for float32.
        with torch.autocast(images.device.type if self.float32 else "cpu", enabled=False):
            tokens, bias, index = encoder.enter(resize(images, self.image_size))  # (B, P + N, D)
            for place, block in enumerate(encoder.blocks):
                assert isinstance(block, Block)
                if query is not None and place == number - 1:
                    attention = attention_of(block, tokens, encoder.num_prefix, query, bias, index)
                tokens, _ = block(tokens, bias=bias, index=index)
                if place >= number - self.blocks:
                    outputs.append(tokens)
            tokens = mean_of_blocks(outputs) if outputs else tokens
            if self.output == "norm":
                tokens = encoder.norm(tokens)
        return Guidance(tokens[:, : encoder.num_prefix], tokens[:, encoder.num_prefix :], attention)


class EMATeacher(EncoderTeacher, EMACopy):
    """An exponential moving average of the student: it begins as a copy, and keeps `momentum` of itself at every step.

    What is fixed in the student, such as position tables, is copied and not averaged; so are buffers.

    Args:
        student: The encoder that is copied.
        momentum: Share of itself that is kept at each step; one number, or a schedule.
        steps: Length of the run, where the momentum has a schedule.
        name: What it is called in messages.
        output: As of `EncoderTeacher`.
        blocks: As of `EncoderTeacher`.
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


def attention_of(
    block: Block,
    tokens: Float[Tensor, "B T D"],
    num_prefix: int,
    query: Query,
    bias: Float[Tensor, "b heads T T"] | None = None,
    index: Int[Tensor, "b T T"] | None = None,
) -> Float[Tensor, "B N"]:
    """How much the query attends to each patch in a block, mean over its heads; `tokens` are what the block gets.

    Only the rows that are asked for are computed: one for the class token; those of the patches for their mean.
    """
    rows = slice(0, 1) if query == "class" else slice(num_prefix, None)
    normed = block.norm1(tokens)
    weights = block.attn.attend(
        normed,
        normed[:, rows],
        None if bias is None else bias[:, :, rows],
        None if index is None else index[:, rows],
    )
    return weights.mean(dim=(1, 2))[:, num_prefix:]


def mean_of_blocks(outputs: list[Float[Tensor, "B T D"]]) -> Float[Tensor, "B T D"]:
    """One block's output as it is; of several, the mean, each token of each standardised before."""
    if len(outputs) == 1:
        return outputs[0]
    standardised = [normalise_tokens(at_least_float32(tokens), unbiased=False, eps=1e-5) for tokens in outputs]
    return torch.stack(standardised).mean(dim=0)


def resize(images: Float[Tensor, "B C H W"], image_size: tuple[int, int]) -> Float[Tensor, "B C h w"]:
    """Images at a teacher's size (bicubic, antialiased); as they are, where that is their size."""
    if images.shape[2:] == image_size:
        return images
    return F.interpolate(images, image_size, mode="bicubic", antialias=True)


def check_blocks(name: str, blocks: int, there: int) -> None:
    """A mean over blocks needs so many; a network without blocks has one output all the same.

    Raises:
        ValueError: if there are fewer, or none is asked for.
    """
    if not 1 <= blocks <= max(there, 1):
        raise ValueError(
            f"TeacherConfig.blocks must be from 1 to the teacher's {there} blocks; got {blocks} of {name}. "
            f"Average over fewer blocks."
        )
