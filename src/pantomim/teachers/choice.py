"""How a teacher is named, and which of its outputs are taken."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

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
# Settings that go with some sources alone: with which, and why not with others.
PARTIAL: dict[str, tuple[Callable[[str], bool], str]] = {
    "depth": (lambda source: source == "random", "A trained network runs as deep as it is"),
    "momentum": (lambda source: source == "ema", "It is that of ema; all others are frozen"),
    "statistics": (
        lambda source: source not in OF_STUDENT and not source.startswith(TOKENIZERS),
        "A copy of the student standardises as the student does, a tokenizer maps pixels its own way",
    ),
    "precision": (lambda source: not source.startswith(TOKENIZERS), "A tokenizer has its own"),
}


@frozen
class TeacherConfig:
    """Which network guides the student, and which of its outputs are taken; there is no default.

    The teacher's input is resized so that its grid is the student's. "ema" begins as the student does; "random" is the
    student as it is drawn from the seed, and stays that where it begins with other weights.

    Paper: Liu et al., arXiv:2209.03917, and the authors' recipes, which have depth 0 for ViT-L and ViT-H.
    Deviation: a moving average moves at every step and with one momentum; it cannot move once an epoch, nor with
        data2vec's ramp, which the authors' launch does not use.
    """

    source: str = ""  # See `WAYS`
    # Blocks of a random teacher, from its first on; 0: projected patches with positions; None: all
    depth: AtLeastZero | None = None
    output: Output = "block"  # The last block's output ("block"), after the final norm, or after CLIP's projection too
    # Mean over the outputs of so many last blocks, each token standardised before (data2vec: 6 of 12)
    blocks: AtLeastOne = 1
    # Of ema alone: the share of itself that it keeps in a step; None: `MOMENTUM`, for long runs
    momentum: Share | None = None
    # Of a network trained elsewhere: whose mean and std standardise what it sees; None: its own
    statistics: Literal["own", "student"] | None = None
    # What it computes in; None: what the run does. data2vec's authors have float32
    precision: Literal["float32"] | None = None

    def __post_init__(self) -> None:
        if self.blocks > 1 and self.output != "block":
            raise ValueError(
                f"TeacherConfig.output must be block for a mean over {self.blocks} blocks, which stand before the "
                f"final norm; got {self.output}. Set output to block, or blocks to 1."
            )
        for name, (goes_with, why) in PARTIAL.items():
            if (value := getattr(self, name)) is not None and not goes_with(self.source):
                raise ValueError(
                    f"TeacherConfig.{name} must be left out for {self.source or '(none)'}; got {value}. {why}."
                )

    def of(self, source: str) -> "TeacherConfig":
        """The same of another network, without the settings that do not go with it."""
        settings: dict[str, Any] = {name: None for name in PARTIAL if not PARTIAL[name][0](source)}
        if source.startswith(TOKENIZERS):
            settings |= {"output": "block", "blocks": 1}
        return replace(self, source=source, **settings)

    def build(self, student: Encoder) -> Teacher:
        """The teacher of a student, on its grid and for its channels; its weights are read here, or copied.

        Only random and ema read the student's weights. A ConnectionError, if weights cannot be downloaded.
        """
        if not self.source:
            raise ValueError(
                f"TeacherConfig.source must be given, as there is no default; got none. Name one; random will do for a "
                f"first try. {WAYS}."
            )
        teacher: Teacher
        if self.source == "random":
            teacher = EncoderTeacher(self._first_blocks(student), "random", output=self.output, blocks=self.blocks)
        elif self.source == "ema":
            momentum = Momentum(MOMENTUM if self.momentum is None else self.momentum)
            teacher = EMATeacher(student, momentum, output=self.output, blocks=self.blocks)
        elif self.source.startswith(TOKENIZERS):
            teacher = self._tokenizer(student)
        else:
            teacher = self._trained(student)
        teacher.float32 = self.precision == "float32"
        return teacher

    def _first_blocks(self, student: Encoder) -> Encoder:
        twin = copy.deepcopy(student)
        if self.depth is not None:
            if self.depth > student.depth:
                raise ValueError(
                    f"TeacherConfig.depth must be at most the student's {student.depth} blocks, which it copies; got "
                    f"{self.depth}. Leave it out for all of them."
                )
            twin.blocks, twin.depth = twin.blocks[: self.depth], self.depth
        return twin

    def _tokenizer(self, student: Encoder) -> Teacher:
        if self.output != "block" or self.blocks != 1:
            raise ValueError(
                f"TeacherConfig must leave output and blocks as they are for a tokenizer, which has one feature a "
                f"patch; got output {self.output}, blocks {self.blocks}."
            )
        tokenizer = load_tokenizer(self.source.removeprefix("tokenizer:"))
        if not isinstance(tokenizer, DVAETokenizer):
            raise ValueError(
                f"TeacherConfig.source must be a tokenizer with features; got {self.source}, which has none. Train one "
                f"with `pantomim tokenizer train`."
            )
        check_channels(self.source, tokenizer.in_chans, student.config)
        return TokenizerTeacher(tokenizer, student.grid, self.source)

    def _trained(self, student: Encoder) -> Teacher:
        """A run, a file, or a network of another library."""
        if not self.source.startswith(PREFIXES) and not Path(self.source).exists():
            raise ValueError(f"TeacherConfig.source must be something that there is; got {self.source}. {WAYS}.")
        encoder, students = load_encoder(self.source), self.statistics == "student"
        fitted: Encoder | WrappedEncoder
        if isinstance(encoder, WrappedEncoder):
            fitted = fit_wrapped(encoder, student.config, students_statistics=students)
        else:
            fitted = fit_encoder(encoder, student.config, self.source, students_statistics=students)
        return EncoderTeacher(fitted, self.source, output=self.output, blocks=self.blocks)
