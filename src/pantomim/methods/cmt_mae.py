"""CMT-MAE: a frozen teacher and a moving average of the student decide together what is masked and what is predicted.

With the scores A (attention of the class token in the last block, over its sum) and the features F of both networks,
which see the whole image, and the teacher's weight a:

    mask    the patches with the largest a A_teacher + (1 - a) A_student
    loss    a d(p_teacher, F_teacher) + (1 - a) d(p_student, F_student), mean over the masked patches

Paper: Mo 2025, *The Dynamic Duo of Collaborative Masking and Target for Advanced Masked Autoencoder Learning*,
arXiv:2412.17566 (AAAI 2025). There is no public code, and only the abstract, the opening of the introduction and short
public digests were at hand: a linear mix of both attentions for the mask and of both features for the target, CLIP as
teacher; by the digests a frozen one, a momentum copy of the student, and that the most informative patches are masked.
All else is a part or a setting here, its default a precedent's or ours: `recipes.cmt_mae.ORIGINS`. The other reading
of the summaries, pixels as target and both networks for the mask alone, is `feature_weight` 0 with `pixel_weight` 1.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen, in_words
from pantomim.core.mask import Mask
from pantomim.core.precision import at_least_float32
from pantomim.core.ranges import NotNegative, Range
from pantomim.masking import MaskerConfig
from pantomim.masking.attention import AttentionMasker
from pantomim.methods.base import COLLAPSED, Method, Requirements, check_masker
from pantomim.methods.guides import draw_mask
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.momentum import Momentum, momentum_of_half_life
from pantomim.nn.tokens import take
from pantomim.nn.vit import EncoderConfig
from pantomim.targets.features import normalise_features
from pantomim.targets.pair import PairConfig, Weighted
from pantomim.targets.pixels import PixelTargetConfig
from pantomim.teachers.base import Guidance, Teacher
from pantomim.teachers.choice import TeacherConfig
from pantomim.teachers.encoder import EMATeacher
from pantomim.teachers.mixing import NETWORKS, Mixing, Network, Scores, evenness, spread, weight_of

MOMENTUM = Momentum(0.996, 1.0)  # usual for momentum encoders


@frozen
class CMTMAEConfig:
    """The parts of CMT-MAE, and how much each counts.

    Paper: abstract and introduction; ViT-B on ImageNet-1K. Precedent: MAE (encoder, decoder, masked patches, ratio).
    """

    kind: Literal["cmt_mae"] = "cmt_mae"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)  # The student's
    decoder: DecoderConfig = field(default_factory=DecoderConfig)  # MAE's
    # What is masked; an `AttentionMasker` gets the mixed scores
    masker: MaskerConfig = field(default_factory=AttentionMasker)
    # The frozen network; no default. CLIP's features: output "norm", or after its "projection"
    teacher: TeacherConfig = field(default_factory=lambda: TeacherConfig(output="norm"))
    # The teacher's weight in the mask, and in the target unless that has its own
    mixing: Mixing = field(default_factory=Mixing)
    scores: Scores = field(default_factory=Scores)  # From attention to scores
    target: PairConfig = field(default_factory=Weighted)  # How the features of both networks are predicted
    feature_weight: NotNegative = 1.0  # Of that in the loss; 0: the two networks guide the mask alone
    pixel_weight: NotNegative = 0.0  # In the loss, of the pixels, which have another head; 0: they are not predicted
    pixels: PixelTargetConfig = field(default_factory=PixelTargetConfig)  # Which pixels, and their distance
    # Features of the moving average: after its final norm, or as its last block gives them
    student_output: Literal["norm", "block"] = "norm"
    momentum: Momentum = MOMENTUM  # What the moving average keeps of itself at each step, unless there is a half-life
    # Share of the run's steps in which the average forgets half of itself; 0.02 for short runs
    half_life: Annotated[float, Range(above=0, most=1)] | None = None
    # Of both networks; auto: that of the run, bfloat16 on a GPU. Targets are float32 in any case
    guide_precision: Literal["auto", "float32"] = "auto"

    def __post_init__(self) -> None:
        check_masker("CMTMAEConfig", self.masker, self.encoder)
        if not self.masker.guided and self.scores != Scores():
            raise ValueError(
                f"CMTMAEConfig.scores must be left out for a masker that asks for no attention; got "
                f"{in_words(self.scores)} and {self.masker.kind}. Leave it out, or take masker attention."
            )
        if not self.feature_weight and not (self.pixel_weight and self.masker.guided):
            raise ValueError(
                f"CMTMAEConfig.feature_weight must be above 0 unless attention guides the mask and pixels are "
                f"predicted; got 0 with masker {self.masker.kind} and pixel_weight {self.pixel_weight:g}. Raise it, "
                f"or take method mae for pixels under any mask."
            )
        if self.half_life is not None and self.momentum != MOMENTUM:
            raise ValueError(
                f"CMTMAEConfig.half_life must be None where a momentum is given; got {self.half_life} and "
                f"{self.momentum}. Set half_life to None, or leave the momentum out."
            )

    @property
    def attended(self) -> tuple[Network, ...]:
        """Whose attention is in the mask at some step of the run."""
        return self.mixing.networks() if self.masker.guided else ()

    @property
    def predicted(self) -> tuple[Network, ...]:
        """Whose features are predicted at some step of the run."""
        return self.target.networks(self.mixing) if self.feature_weight else ()

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher is asked at some step of the run."""
        return "teacher" in self.attended + self.predicted

    def build(self, steps: int | None = None, teacher: Teacher | None = None) -> "CMTMAE":
        """The method, initialised from torch's global generator; `teacher` in place of the config's, if given."""
        return CMTMAE(self, steps, teacher)


@dataclass(frozen=True)
class CMTMAEDraws:
    """All that is random in a step, and the answers of both networks, which are asked once."""

    mask: Mask
    features: Mapping[Network, Float[Tensor, "B M _"]]  # the target: of the masked patches, zeros without weight
    teacher_weight: Float[Tensor, ""]  # in the target
    facts: Mapping[str, Tensor]  # for the log


class CMTMAE(Method):
    """Student and decoder around a mask; teacher and the student's average on whole images, if ever asked."""

    exports_decoder = True

    def __init__(self, config: CMTMAEConfig, steps: int | None = None, teacher: Teacher | None = None) -> None:
        super().__init__()
        self.config, self.masker, self.target, self.steps = config, config.masker, config.target, steps
        self.encoder = encoder = config.encoder.build()
        self.requirements = Requirements.of(config.encoder)
        self.teacher = (teacher or config.teacher.build(encoder)) if config.needs_teacher else None
        self.ema_student = None
        if "student" in config.attended + config.predicted:
            momentum, name = config.momentum, "the student's moving average"
            if config.half_life is not None and steps:
                momentum = Momentum(momentum_of_half_life(config.half_life * steps))
            self.ema_student = EMATeacher(encoder, momentum, steps, name, output=config.student_output)
        self.pixels = config.pixels.build(encoder) if config.pixel_weight else None
        widths = {name: network.width for name, network in self.networks().items() if name in config.predicted}
        heads = self.target.heads(widths) if widths else []
        self.widths = [sum(heads), 0 if self.pixels is None else self.pixels.dim]  # of features and pixels
        self.decoder = config.decoder.build(encoder.width, encoder.num_prefix, encoder.grid, sum(self.widths))
        if len(shared := [width for width in (*heads, self.widths[1]) if width]) > 1:
            for rows in self.decoder.decoder_pred.weight.detach().split(shared):  # each head as it would be alone
                nn.init.xavier_uniform_(rows)
        for name, network in self.networks().items():
            network.float32 |= config.guide_precision == "float32"
            network.check_query(config.scores.query(name) if name in config.attended else None)

    def networks(self) -> dict[Network, Teacher]:
        """The guiding networks that there are, the teacher first."""
        both = zip(NETWORKS, (self.teacher, self.ema_student), strict=True)
        return {name: network for name, network in both if network is not None}

    @property
    def asked(self) -> tuple[nn.Module, ...]:
        """The guiding networks."""
        return (*self.networks().values(),)

    @torch.no_grad()
    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> CMTMAEDraws:
        """Ask both networks about whole images, mask by their mixed attention, keep the features to be predicted."""
        config = self.config
        in_mask, in_target = config.mixing.at(step, self.steps), self.target.weight(config.mixing, step, self.steps)
        answers: dict[Network, Guidance] = {}
        for name, network in self.networks().items():  # one that has no weight now is not asked
            attends = name in config.attended and weight_of(name, in_mask) > 0
            if attends or (name in config.predicted and weight_of(name, in_target) > 0):
                query = config.scores.query(name) if attends else None
                answers[name] = network(batch.images, query)

        maps = config.scores.maps({name: answer.attention for name, answer in answers.items()}, in_mask)
        mask = draw_mask(self.masker, batch, self.encoder.grid, generator, maps.get("mask"))
        zero = at_least_float32(batch.images.new_zeros(()))
        features = {  # zeros of a network that was not asked, so that forward is the same in every step
            name: normalise_features(take(answers[name].patches, mask.ids_mask), self.target.normalise)
            if name in answers
            else zero.new_zeros(*mask.ids_mask.shape, self.networks()[name].width)
            for name in config.predicted
        }
        facts = {"mask_teacher_weight": zero + in_mask} if self.masker.guided else {}
        for whose in ("teacher", "student", "mask") if self.masker.guided else ():
            facts[f"entropy_{whose}"] = evenness(maps[whose]).to(zero) if whose in maps else zero + math.nan
        if "student" in features:
            asked = "student" in answers
            facts["student_std"] = spread(answers["student"].patches).to(zero) if asked else zero + math.nan
        return CMTMAEDraws(mask, features, zero + in_target, facts)

    def forward(self, batch: Batch, draws: CMTMAEDraws) -> dict[str, Tensor]:
        """Both networks' features at the masked patches (draws have them), predicted from the visible patches."""
        mask, losses = draws.mask, dict(draws.facts)
        latent = self.encoder(batch.images, mask.ids_keep)  # visible patches only
        prediction = self.decoder(latent, mask)  # (B, M, K): features, then pixels
        features, pixels = prediction.split(self.widths, dim=-1)
        loss = baseline = draws.teacher_weight.new_zeros(())
        if draws.features:
            losses |= self.target.loss(features, draws.features, draws.teacher_weight)
            loss, baseline = (self.config.feature_weight * losses[name] for name in ("loss", "baseline"))
        if self.pixels is not None:
            target = self.pixels.at(batch.images, mask.ids_mask)
            losses["loss_pixels"] = self.pixels.loss(pixels, target)
            loss = loss + self.config.pixel_weight * losses["loss_pixels"]
            baseline = baseline + self.config.pixel_weight * self.pixels.metrics(pixels, target)["baseline"]
        return losses | {"loss": loss, "baseline": baseline}

    def warning(self, logged: Mapping[str, float | None]) -> str | None:
        """Of a moving average with nearly the same features for all images: places alone then predict them."""
        student_std, least = logged.get("student_std"), COLLAPSED["student_std"]
        if student_std is None or not student_std < least:
            return super().warning(logged)
        slower = "method.momentum.start" if self.config.half_life is None else "method.half_life"
        return (
            f"the features of the student's moving average have collapsed: a patch's differ by less than {least} "
            f"of their size from image to image (student_std). Raise method.mixing.teacher_weight or {slower}."
        )
