"""How a teacher is named, and which of its outputs are taken."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pantomim.core.frozen import frozen
from pantomim.core.ranges import AtLeastOne, AtLeastZero, Share
from pantomim.formats import PREFIXES, load_encoder
from pantomim.formats.wrapped import WrappedEncoder
from pantomim.nn.momentum import Momentum
from pantomim.nn.vit import Encoder
from pantomim.teachers.base import Teacher
from pantomim.teachers.encoder import EMATeacher, EncoderTeacher, Output
from pantomim.teachers.fitting import check_channels, fit_encoder, fit_wrapped
from pantomim.teachers.tokenizer import TokenizerTeacher
from pantomim.teachers.wrapped import WrappedTeacher
from pantomim.tokenizers.dvae import DVAETokenizer
from pantomim.tokenizers.loading import load_tokenizer

WAYS = (
    "Ways to get one: random (a copy of the student's encoder as it is drawn from the seed, also where the run starts "
    "from other weights); ema (a moving average of the student); the RUN folder of a pre-training; FILE, an encoder's "
    "weights; timm:NAME or timm:NAME@FILE; open_clip:NAME:TAG or open_clip:NAME@FILE; hf:NAME or hf:FOLDER; clip:FILE "
    "(OpenAI's weights); tokenizer:RUN; dalle:FILE (the published encoder.pkl)"
)

OF_STUDENT = ("random", "ema")  # whose weights are the student's own
TOKENIZERS = ("tokenizer:", "dalle:")  # what the names of tokenizers begin with
MOMENTUM = 0.9998  # data2vec's ViT-B as launched; it forgets half of itself in some 3500 steps


@frozen
class TeacherConfig:
    """Which network guides the student, and which of its outputs are taken; there is no default.

    The teacher's input is resized so that its grid is the student's. "ema" begins as the student
    does; "random" is the student as it is drawn from the seed, and stays that where it begins with other weights.

    Args:
        source: See `WAYS`.
        depth: Blocks of a random teacher, from its first on; 0: projected patches with their positions and the class
            token; None: all of the student's.
        output: The last block's output as it is ("block"), after the teacher's final norm ("norm"), or after its
            projection too ("projection", of CLIP's image towers).
        blocks: Mean over the outputs of so many last blocks, each token of each standardised before (data2vec: 6 of
            12).
        momentum: Of ema alone: the share of itself that it keeps in a step; None: `MOMENTUM`, for long runs.
        statistics: Of a network that was trained elsewhere: whose mean and std standardise what it sees, its own or
            the student's; None: its own.
        precision: What it computes in; None: what the run does. data2vec's authors have float32 beside a student in half
            precision.

    Raises:
        ValueError: if a setting is out of range or does not go with the others.

    Paper: Liu et al., arXiv:2209.03917, and the authors' recipes, which have depth 0 for ViT-L and ViT-H.
    Deviation: a moving average moves at every step and with one momentum; it cannot move once an epoch, nor with
        data2vec's ramp, which the authors' launch does not use.
    """

    source: str = ""
    depth: AtLeastZero | None = None
    output: Output = "block"
    blocks: AtLeastOne = 1
    momentum: Share | None = None
    statistics: Literal["own", "student"] | None = None
    precision: Literal["float32"] | None = None

    def __post_init__(self) -> None:
        source = self.source or "(none)"
        if self.depth is not None and self.source != "random":
            raise ValueError(
                f"TeacherConfig.depth must be left out for a teacher that is not random; got {self.depth} with source "
                f"{source}. A trained network runs as deep as it is."
            )
        if self.blocks > 1 and self.output != "block":
            raise ValueError(
                f"TeacherConfig.output must be block for a mean over {self.blocks} blocks, which stand before the "
                f"final norm; got {self.output}. Set output to block, or blocks to 1."
            )
        if self.momentum is not None and self.source != "ema":
            raise ValueError(
                f"TeacherConfig.momentum must be left out for a frozen teacher; got {self.momentum} with source "
                f"{source}. It is that of ema."
            )
        if self.statistics is not None and not _has_statistics(self.source):
            raise ValueError(
                f"TeacherConfig.statistics must be left out for {source}; got {self.statistics}. A copy of the "
                f"student standardises as the student does, a tokenizer maps pixels its own way."
            )
        if self.precision is not None and self.source.startswith(TOKENIZERS):
            raise ValueError(
                f"TeacherConfig.precision must be left out for {source}; got {self.precision}. A tokenizer has its own."
            )

    def of(self, source: str) -> "TeacherConfig":
        """The same of another network, without the settings that do not go with it."""
        return replace(
            self,
            source=source,
            depth=self.depth if source == "random" else None,
            momentum=self.momentum if source == "ema" else None,
            statistics=self.statistics if _has_statistics(source) else None,
            output="block" if source.startswith(TOKENIZERS) else self.output,
            blocks=1 if source.startswith(TOKENIZERS) else self.blocks,
            precision=None if source.startswith(TOKENIZERS) else self.precision,
        )

    def build(self, student: Encoder) -> Teacher:
        """The teacher of a student, on its grid and for its channels; its weights are read here, or copied.

        Only random and ema read the student's weights: of all others its config decides.

        Raises:
            ValueError: if there is no such network, or it cannot guide this student.
            ConnectionError: if weights are to be downloaded and cannot be had.
        """
        if not self.source:
            raise ValueError(f"TeacherConfig.source must be given, as there is no default; got none. Name one. {WAYS}.")
        build: Callable[[TeacherConfig, Encoder], Teacher] = _encoder
        for beginning, other in SOURCES.items():
            if self.source.startswith(beginning) and (beginning.endswith(":") or self.source == beginning):
                build = other
        teacher = build(self, student)
        teacher.float32 = self.precision == "float32"
        return teacher


def _random(config: TeacherConfig, student: Encoder) -> Teacher:
    """A copy of the student with as many blocks as the config says."""
    twin = copy.deepcopy(student)
    if config.depth is not None:
        if config.depth > student.depth:
            raise ValueError(
                f"TeacherConfig.depth must be at most the student's {student.depth} blocks, which it copies; got "
                f"{config.depth}. Leave it out for all of them."
            )
        twin.blocks, twin.depth = twin.blocks[: config.depth], config.depth
    return EncoderTeacher(twin, "random", output=config.output, blocks=config.blocks)


def _ema(config: TeacherConfig, student: Encoder) -> Teacher:
    momentum = Momentum(MOMENTUM if config.momentum is None else config.momentum)
    return EMATeacher(student, momentum, output=config.output, blocks=config.blocks)


def _tokenizer(config: TeacherConfig, student: Encoder) -> Teacher:
    if config.output != "block" or config.blocks != 1:
        raise ValueError(
            f"TeacherConfig must leave output and blocks as they are for a tokenizer, which has one feature a "
            f"patch; got output {config.output}, blocks {config.blocks}."
        )
    tokenizer = load_tokenizer(config.source.removeprefix("tokenizer:"))
    if not isinstance(tokenizer, DVAETokenizer):
        raise ValueError(
            f"TeacherConfig.source must be a tokenizer with features; got {config.source}, which has none. Train one "
            f"with `pantomim tokenizer train`."
        )
    check_channels(config.source, tokenizer.in_chans, student.config)
    rows, cols = student.grid
    return TokenizerTeacher(tokenizer, (rows * tokenizer.stride, cols * tokenizer.stride), config.source)


def _encoder(config: TeacherConfig, student: Encoder) -> Teacher:
    """A run, a file, or a network of another library."""
    if not config.source.startswith(PREFIXES) and not Path(config.source).exists():
        raise ValueError(f"TeacherConfig.source must be something that there is; got {config.source}. {WAYS}.")
    encoder, students = load_encoder(config.source), config.statistics == "student"
    if isinstance(encoder, WrappedEncoder):
        fitted = fit_wrapped(encoder, student.config, students_statistics=students)
        return WrappedTeacher(fitted, output=config.output, blocks=config.blocks)
    ours = fit_encoder(encoder, student.config, config.source, students_statistics=students)
    return EncoderTeacher(ours, config.source, output=config.output, blocks=config.blocks)


# What is no encoder that `load_encoder` reads, by its name or, with a colon, by the beginning of its name.
SOURCES: dict[str, Callable[[TeacherConfig, Encoder], Teacher]] = {
    "random": _random,
    "ema": _ema,
    **dict.fromkeys(TOKENIZERS, _tokenizer),
}


def _has_statistics(source: str) -> bool:
    """Whether a teacher may have been trained with another mean and std than the student's."""
    return source not in OF_STUDENT and not source.startswith(TOKENIZERS)
