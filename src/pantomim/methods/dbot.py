"""dBOT: a student sees the visible patches and predicts, at the hidden ones, what a teacher says of the whole image.

The teacher stands still within a stage; the next stage has the student as its teacher, and a new student (`stages`).
The symmetric variant, in which the encoder sees mask tokens and a CLIP model teaches, is BEiT with a feature target.

Paper: Liu et al. 2024, *Exploring Target Representations for Masked Autoencoders*, arXiv:2209.03917.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen, in_words
from pantomim.core.mask import Mask
from pantomim.masking import Masker, MaskerConfig
from pantomim.masking.random import RandomMasker
from pantomim.methods.base import Method
from pantomim.methods.guides import ask, draw_mask
from pantomim.nn.decoder import DecoderConfig, MAEDecoder
from pantomim.nn.tokens import take
from pantomim.nn.vit import Encoder, EncoderConfig
from pantomim.targets.distance import Distance
from pantomim.targets.features import FeatureNormalisation, normalise_features
from pantomim.teachers.base import Guidance, Query, Teacher
from pantomim.teachers.choice import TeacherConfig


@frozen
class DBOTConfig:
    """The parts of dBOT, with the values of the authors' ViT-B.

    Args:
        encoder: The student's; stochastic depth of 0.2 (ViT-H: 0.3).
        decoder: MAE's, with the encoder's stochastic depth; it predicts vectors of the teacher's width.
        masker: The same number of patches in every image; an `AttentionMasker` gets the teacher's attention.
        guide_query: Whose attention that is: the class token's, or the mean over all patches'.
        teacher: Which network, and what is taken of it: what its last block says before the final norm ("block"), or
            after it ("norm"). Of a random one `depth` blocks: all for ViT-B, none in the authors' ViT-L and ViT-H.
            "ema" instead follows the student at every step, which the authors compare with.
        normalise: "unbiased" standardises each token of the teacher over its numbers, without weights, by the unbiased
            variance; "none" takes it as it comes; see `FeatureTarget` for others.
        distance: Between prediction and target.
        predict_class: The class token is predicted too and counts like a hidden patch, as in the authors' code; None:
            where student and teacher have one, which each stage of a chain decides by its own teacher.

    Raises:
        ValueError: if the masker does not go with the encoder's grid, or hides another number of patches in each image,
            or there is no class token to predict.

    Source: the authors' `models_mae.py` and `PRETRAIN.md` (github.com/liuxingbin/dbot).
    """

    kind: Literal["dbot"] = "dbot"
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(drop_path=0.2))
    decoder: DecoderConfig = field(default_factory=lambda: DecoderConfig(drop_path=0.2))
    masker: MaskerConfig = field(default_factory=RandomMasker)
    guide_query: Query = "class"
    teacher: TeacherConfig = field(default_factory=lambda: TeacherConfig(source="random"))
    normalise: FeatureNormalisation = "unbiased"
    distance: Distance = field(default_factory=lambda: Distance("smooth_l1", beta=2.0))
    predict_class: bool | None = True

    def __post_init__(self) -> None:
        self.masker.num_masked(self.encoder.grid)
        if self.masker.varies:
            raise ValueError(
                f"DBOTConfig.masker must hide the same number of patches in every image, as the student's encoder "
                f"takes the visible ones as one tensor; got {self.masker.kind}, whose number varies. Set exact."
            )
        if self.predict_class and not self.encoder.class_token:
            raise ValueError(
                "DBOTConfig.predict_class must be False or None for an encoder without a class token; got True. Set "
                "it, or give the encoder a class token."
            )

    def describe(self, teacher: Teacher | None = None) -> list[tuple[str, str]]:
        """Parts and token shapes, and which network sees which patches; for `pantomim explain`.

        Args:
            teacher: The one that there will be, whose width is said; None: not known.
        """
        encoder, decoder = self.encoder, self.decoder
        (height, width), (rows, cols) = encoder.image_size, encoder.grid
        size, channels, prefix = encoder.patch_size, encoder.in_chans, encoder.num_prefix
        masked = self.masker.num_masked(encoder.grid)
        visible = rows * cols - masked
        sizes = "{0.width} wide, {0.depth} blocks, {0.heads} heads, stochastic depth {0.drop_path:g}".format
        with_class = self.predict_class if teacher is None else self.predicts_class(teacher)
        also = "the class token and " if with_class else ""
        vectors = "the teacher's width" if teacher is None else str(teacher.width)
        guided = f", by the teacher's attention ({self.guide_query} query)" if self.masker.guided else ""
        target = "as it comes" if self.normalise == "none" else f"normalised token by token ({self.normalise})"
        return [
            ("images", f"B x {channels} x {height} x {width}, patches of {size}x{size}, grid {rows} x {cols}"),
            (
                "masker",
                f"{self.masker.kind} ({in_words(self.masker)}): {visible} visible and {masked} masked patches" + guided,
            ),
            ("student", f"{sizes(encoder)}, {encoder.position} positions"),
            ("student sees", f"B x {prefix + visible} x {encoder.width}: visible patches and {prefix} prefix token(s)"),
            ("decoder", sizes(decoder)),
            (
                "decoder sees",
                f"B x {prefix + rows * cols} x {decoder.width}: all positions, a mask token at hidden ones",
            ),
            ("teacher's settings", in_words(self.teacher)),
            ("teacher sees", f"all {rows * cols} patches of the same image, none hidden; no gradient"),
            (
                "predicts",
                f"B x {masked + int(bool(with_class))} x {vectors}: what the teacher says of {also}the "
                f"masked patches, {target}; {in_words(self.distance)}",
            ),
        ]

    def build(self) -> "DBOT":
        """The method, with the authors' initialisation drawn from torch's global generator.

        Raises:
            ValueError: if there is no such teacher, or it does not go with the encoder.
        """
        encoder = self.encoder.build()
        return self._assembled(encoder, self.teacher.build(encoder))

    def build_around(self, teacher: Teacher) -> "DBOT":
        """The method with a teacher that is there already."""
        return self._assembled(self.encoder.build(), teacher)

    def predicts_class(self, teacher: Teacher) -> bool:
        """Whether the class token is predicted with this teacher.

        Raises:
            ValueError: if it must be, and the teacher has none.
        """
        if self.predict_class is None:
            return self.encoder.class_token and teacher.num_prefix > 0
        if self.predict_class and not teacher.num_prefix:
            raise ValueError(
                "DBOTConfig.predict_class must be None or False for a teacher without a class token; got True. Give "
                "--method.predict_class None (predicted in those stages whose teacher has one), or another teacher."
            )
        return self.predict_class

    def _assembled(self, encoder: Encoder, teacher: Teacher) -> "DBOT":
        decoder = self.decoder.build(encoder.width, encoder.num_prefix, encoder.grid, teacher.width)
        return DBOT(
            encoder,
            decoder,
            self.masker,
            teacher,
            normalise=self.normalise,
            distance=self.distance,
            predict_class=self.predicts_class(teacher),
            guide_query=self.guide_query if self.masker.guided else None,
        )


@dataclass(frozen=True)
class DBOTDraws:
    """All that is random in a step of dBOT.

    Args:
        mask: What is hidden.
        target: What the teacher says of it, where it has been asked for the mask's sake already.
    """

    mask: Mask
    target: Float[Tensor, "B T K"] | None = None


class DBOT(Method):
    """An encoder and a decoder around a mask, and a teacher without one; `DBOTConfig` explains the settings."""

    def __init__(
        self,
        encoder: Encoder,
        decoder: MAEDecoder,
        masker: Masker,
        teacher: Teacher,
        *,
        normalise: FeatureNormalisation = "unbiased",
        distance: Distance,
        predict_class: bool = True,
        guide_query: Query | None = None,
    ) -> None:
        super().__init__()
        if guide_query is not None:
            teacher.check_query(guide_query)
        self.encoder, self.decoder, self.masker, self.teacher = encoder, decoder, masker, teacher
        self.normalise, self.distance, self.predict_class = normalise, distance, predict_class
        self.guide_query = guide_query

    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> DBOTDraws:
        """One mask per image of the global batch, cut to this batch's rows."""
        if self.guide_query is None:
            return DBOTDraws(draw_mask(self.masker, batch, self.encoder.grid, generator))
        said = ask(self.teacher, batch.images, self.guide_query)
        mask = draw_mask(self.masker, batch, self.encoder.grid, generator, said.attention)
        return DBOTDraws(mask, self.wanted(said, mask.ids_mask))

    def forward(self, batch: Batch, draws: DBOTDraws) -> dict[str, Tensor]:
        """The distance to what the teacher says of the class token and the hidden patches, over all of them alike."""
        mask = draws.mask
        latent = self.encoder(batch.images, mask.ids_keep)  # visible patches only
        prediction = self.decoder(latent, mask, with_class=self.predict_class)  # (B, 1 + M, K)
        target = self.target(batch.images, mask.ids_mask) if draws.target is None else draws.target  # (B, 1 + M, K)
        return {"loss": self.distance(prediction, target)}

    @torch.no_grad()
    def target(self, images: Float[Tensor, "B C H W"], ids: Int[Tensor, "B M"]) -> Float[Tensor, "B T K"]:
        """What the teacher says of the class token and the patches `ids` of whole images; no gradient."""
        return self.wanted(self.teacher(images), ids)

    def wanted(self, said: Guidance, ids: Int[Tensor, "B M"]) -> Float[Tensor, "B T K"]:
        """Of all that the teacher says, what is to be predicted, normalised."""
        tokens = take(said.patches, ids)
        if self.predict_class:
            tokens = torch.cat([said.prefix[:, :1], tokens], dim=1)
        return normalise_features(tokens, self.normalise)

    def update_ema(self, step: int) -> None:
        """A teacher that is a moving average follows the student; any other stands still."""
        self.teacher.follow(self.encoder)

    def reset(self) -> None:
        """A moving average begins again as the student, whose weights have been replaced."""
        self.teacher.start(self.encoder)

    def exports(self) -> dict[str, nn.Module]:
        """The student's encoder, and its decoder for going on."""
        return {"encoder": self.encoder, "decoder": self.decoder}
