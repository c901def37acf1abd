"""CMT-MAE: a frozen teacher and a slow copy of the student decide together what is hidden and what is predicted.

Paper: Mo 2025, *The Dynamic Duo of Collaborative Masking and Target for Advanced Masked Autoencoder Learning*,
arXiv:2412.17566 (AAAI 2025). There is no public code, and only the abstract, the opening of the introduction and short
public digests were at hand: a linear mix of both attentions for the mask and of both features for the target, CLIP as
teacher; by the digests a frozen one, a momentum copy of the student, and that the most informative patches are hidden.
All else is a setting here, and its default a precedent's or ours: `recipes.cmt_mae.ORIGINS`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen, in_words
from pantomim.core.mask import Mask
from pantomim.masking import Masker, MaskerConfig
from pantomim.masking.attention import AttentionMasker
from pantomim.methods.base import Method, Requirements
from pantomim.methods.guidance_record import GuidanceRecord
from pantomim.methods.guides import ask, draw_mask
from pantomim.nn.decoder import DecoderConfig, MAEDecoder, PromptingDecoder
from pantomim.nn.momentum import Momentum, momentum_of_half_life
from pantomim.nn.tokens import take
from pantomim.nn.vit import Encoder, EncoderConfig, Features
from pantomim.targets.distance import Distance
from pantomim.targets.features import FeatureNormalisation, normalise_features
from pantomim.targets.pixels import PixelTarget, PixelTargetConfig
from pantomim.teachers.base import Guidance, Query, Teacher
from pantomim.teachers.choice import TeacherConfig
from pantomim.teachers.encoder import EMATeacher

TargetMode = Literal["weighted", "blend", "concat"]
Positions = Literal["masked", "all"]
DecoderInput = Literal["latent", "features"]
MOMENTUM = Momentum(0.996, 1.0)  # usual for momentum encoders
COLLAPSED = 0.05  # deviation of what the copy says of a place from image to image, over its size. Ours


@frozen
class Mixing:
    """How much the teacher has to say, from 0 (all is the student's) to 1 (all is the teacher's).

    Args:
        teacher_weight: In mask and target alike.
        mask_teacher_weight: In the mask; None: `teacher_weight`.
        target_teacher_weight: In the target; None: `teacher_weight`.
        stage_mode: "warmup": the teacher alone at first, then both; "joint": both from the first step on. The paper is
            said to have two stages; whether these are phases of training or the two halves of a step is not stated.
        warmup_share: Share of the run's steps that the first phase takes.
        schedule: After that the weights stay ("constant"), or go evenly or along half a cosine from `start` to the
            weights above, which they reach in the last step.
        start: Of both weights, where they have a schedule.

    Raises:
        ValueError: if a weight is no share, or settings do not go together.

    Paper: that there is such a weight is stated; not its value, nor whether mask and target share it, nor a schedule.
    """

    teacher_weight: float = 0.5
    mask_teacher_weight: float | None = None
    target_teacher_weight: float | None = None
    stage_mode: Literal["warmup", "joint"] = "warmup"
    warmup_share: float = 0.1
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    start: float | None = None

    def __post_init__(self) -> None:
        names = ("teacher_weight", "mask_teacher_weight", "target_teacher_weight", "start", "warmup_share")
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"Mixing.{name} must be in [0, 1]; got {value}. 1 is the teacher alone.")
        if (self.start is None) != (self.schedule == "constant"):
            raise ValueError(
                f"Mixing.start goes with a schedule that is linear or cosine; got {self.start} and {self.schedule}. "
                f"Give both, or none."
            )
        if (
            self.stage_mode == "warmup"
            and self.warmup_share > 0
            and max(self.mask, self.target, self.start or 0.0) == 0
        ):
            raise ValueError(
                "Mixing.stage_mode must be joint at weights of 0, where there is no teacher to begin with; got warmup. "
                "Give --method.mixing.stage_mode joint."
            )

    @property
    def mask(self) -> float:
        """The teacher's last weight in the mask."""
        return self.teacher_weight if self.mask_teacher_weight is None else self.mask_teacher_weight

    @property
    def target(self) -> float:
        """The teacher's last weight in the target."""
        return self.teacher_weight if self.target_teacher_weight is None else self.target_teacher_weight

    def reach(self, last: float) -> tuple[float, float]:
        """The lowest and the highest value on the way to a last weight."""
        values = [last, *([1.0] if self._first_phase else []), *([] if self.start is None else [self.start])]
        return min(values), max(values)

    @property
    def _first_phase(self) -> bool:
        """Whether there is one that differs from the second."""
        alone = self.start is None and self.mask == self.target == 1
        return self.stage_mode == "warmup" and self.warmup_share > 0 and not alone

    def at(self, step: int, total: int | None = None) -> tuple[float, float]:
        """The teacher's weights in mask and target at a step (from 0) of a run of `total`.

        Raises:
            ValueError: if they depend on the length of the run, and none is given.
        """
        if not self._first_phase and self.start is None:
            return self.mask, self.target
        if not total:
            raise ValueError(
                f"Mixing.at must be given the length of the run, of which stages and schedules are shares; got "
                f"{total}. Build the method with it."
            )
        first = math.ceil(self.warmup_share * total - 1e-9) if self._first_phase else 0
        if step < first:
            return 1.0, 1.0
        if self.start is None:
            return self.mask, self.target
        share = min((step - first) / max(total - 1 - first, 1), 1.0)
        if self.schedule == "cosine":
            share = 0.5 * (1.0 - math.cos(math.pi * share))
        return tuple(self.start + (last - self.start) * share for last in (self.mask, self.target))  # type: ignore[return-value]

    def describe(self, *, in_mask: bool, in_target: bool) -> str:
        """The weights and how they change, where they count."""
        weights = [f"{self.mask:g} in the mask"] * in_mask + [f"{self.target:g} in the target"] * in_target
        if not weights:
            return "none"
        way = "" if self.start is None else f", {self.schedule} from {self.start:g}"
        first = f", 1 in the first {100 * self.warmup_share:g} % of the steps" if self._first_phase else ""
        return f"{', '.join(weights)}{way}{first}"


@frozen
class Scores:
    """From a network's attention to a score of each patch.

    Args:
        teacher_query: Whose attention: the class token's, or the mean over all patches'.
        student_query: The same of the student's copy: a class token that no loss asks for may attend evenly.
        renormalise: Divide by the sum over the patches, so that the share that goes to the class token, which differs
            from network to network, does not change the weights of the mix.
        temperature: The mean over the heads is raised to the power of one over it first; below 1 it is more peaked.

    Raises:
        ValueError: if the temperature is not positive.

    Paper: none of this is stated. MILAN and AttMask have the class token's attention in the last block, the mean over
        its heads.
    """

    teacher_query: Query = "class"
    student_query: Query = "class"
    renormalise: bool = True
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"Scores.temperature must be above 0; got {self.temperature}. 1 leaves attention alone.")

    def __call__(self, attention: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
        """Scores, float32 at least."""
        scores = attention.to(torch.promote_types(attention.dtype, torch.float32))
        if self.temperature != 1:
            scores = (scores / scores.amax(dim=1, keepdim=True)).pow(1 / self.temperature)  # largest 1: none overflows
        return scores / scores.sum(dim=1, keepdim=True) if self.renormalise else scores


@frozen
class CMTMAEConfig:
    """The parts of CMT-MAE. Only what `Paper` below says is stated; every other default is ours, or a precedent's.

    Args:
        encoder: The student's.
        decoder: Its sizes.
        decoder_form: MAE's, or MILAN's, which works on the hidden tokens alone.
        decoder_input: "latent": what the student's encoder says of the visible patches. "features": beside it what the
            teacher says of these patches, which has seen the hidden ones: a literal reading of a summary, in which the
            decoder gets the answer in part; nothing like it is known to be the paper's.
        masker: What is hidden; with an `AttentionMasker` the mixed scores decide.
        teacher: The frozen network, and what is taken of it; there is no default. CLIP's pre-projection features of 768
            are output "norm", its projected ones "projection".
        mixing: The teacher's weight in mask and target.
        scores: From attention to scores.
        target_mode: "weighted": one head for each network, and the weighted sum of both distances; "blend": one head,
            whose target is the weighted mean of both features; "concat": one head for both features side by side, which
            has no weight: both count alike from the first step on, whatever the stages of the mask.
        shared_head: Of weighted: one head for both, which must be equally wide.
        student_output: What is taken of the student's copy: after its final norm, or what the last block says.
        normalise: Of each token of both; "biased": a layer norm without weights, eps 1e-6. See `FeatureTarget`.
        distance: Between prediction and target.
        positions: Predicted are hidden patches, or all.
        predict_class: The class token is predicted too, and counts like a patch.
        pixel_weight: Of a further head's distance from the pixels; 0: there is none.
        pixels: Which pixels.
        momentum: What the student's copy keeps of itself at each step, where there is no half-life.
        half_life: In place of it: share of the run's steps in which the copy forgets half of itself; 0.02 for short
            runs. Only one of the two may be given.
        guide_precision: Of both guiding networks on a GPU; scores and features are float32 in any case.

    Raises:
        ValueError: if settings do not go together.

    Paper: abstract and introduction: linear aggregation of the attention of a teacher (such as CLIP) and of the student
        for the mask, both output features as the decoder's target, ViT-B on ImageNet-1K. Precedents:
        MAE (encoder, decoder, hidden patches, ratio), MILAN (last block, class token, ViT-B/16 of CLIP).
    """

    kind: Literal["cmt_mae"] = "cmt_mae"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    decoder_form: Literal["mae", "prompting"] = "mae"
    decoder_input: DecoderInput = "latent"
    masker: MaskerConfig = field(default_factory=AttentionMasker)
    teacher: TeacherConfig = field(default_factory=lambda: TeacherConfig(output="norm"))
    mixing: Mixing = field(default_factory=Mixing)
    scores: Scores = field(default_factory=Scores)
    target_mode: TargetMode = "weighted"
    shared_head: bool = False
    student_output: Literal["norm", "block"] = "norm"
    normalise: FeatureNormalisation = "biased"
    distance: Distance = field(default_factory=Distance)
    positions: Positions = "masked"
    predict_class: bool = False
    pixel_weight: float = 0.0
    pixels: PixelTargetConfig = field(default_factory=PixelTargetConfig)
    momentum: Momentum = MOMENTUM
    half_life: float | None = None
    guide_precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        self.masker.num_masked(self.encoder.grid)
        if self.masker.varies:
            raise ValueError(
                f"CMTMAEConfig.masker must hide the same number of patches in every image, as the student's encoder "
                f"takes the visible ones as one tensor; got {self.masker.kind}, whose number varies. Set exact."
            )
        if not self.masker.guided and self.mixing.mask_teacher_weight is not None:
            raise ValueError(
                f"Mixing.mask_teacher_weight must be left out for a masker that asks for no attention; got "
                f"{self.mixing.mask_teacher_weight} and {self.masker.kind}. Leave it out, or take masker attention."
            )
        if self.target_mode == "concat" and self.mixing.target_teacher_weight is not None:
            raise ValueError(
                f"Mixing.target_teacher_weight must be left out for concat, which has no weight; got "
                f"{self.mixing.target_teacher_weight}. Leave it out, or take weighted or blend."
            )
        if self.shared_head and self.target_mode != "weighted":
            raise ValueError(f"CMTMAEConfig.shared_head goes with weighted; {self.target_mode} has one head anyway.")
        if not self.encoder.class_token and (self.predict_class or self._class_attends):
            what = "predict_class must be False" if self.predict_class else "scores.student_query must be mean"
            raise ValueError(f"CMTMAEConfig.{what} for an encoder without a class token. Set it, or give it one.")
        if self.pixel_weight < 0:
            raise ValueError(f"CMTMAEConfig.pixel_weight must not be negative; got {self.pixel_weight}. 0 means none.")
        if not self.masker.guided and self.scores != Scores():
            raise ValueError(
                f"CMTMAEConfig.scores must be left out for a masker that asks for no attention; got "
                f"{in_words(self.scores)} and {self.masker.kind}. Leave it out, or take masker attention."
            )
        if self.target_mode == "concat" and self.mixing.target in (0, 1):
            raise ValueError(
                f"CMTMAEConfig.target_mode must be weighted where one network alone is predicted (weight "
                f"{self.mixing.target:g}); got concat, which predicts both. For the mask alone, give "
                f"--method.mixing.mask-teacher-weight {self.mixing.target:g} and leave teacher-weight out."
            )
        if self.half_life is not None and self.momentum != MOMENTUM:
            raise ValueError(
                f"CMTMAEConfig.half_life must be None where a momentum is given; got {self.half_life} and "
                f"{self.momentum}. Give --method.half-life None, or leave the momentum out."
            )
        if self.half_life is not None and not 0 < self.half_life <= 1:
            raise ValueError(
                f"CMTMAEConfig.half_life must be a share of the run's steps, in (0, 1]; got {self.half_life}."
            )

    @property
    def _class_attends(self) -> bool:
        return (
            self.masker.guided and self.mixing.reach(self.mixing.mask)[0] < 1 and self.scores.student_query == "class"
        )

    @property
    def targets(self) -> tuple[Literal["teacher", "student"], ...]:
        """Whose features are predicted, at some step of the run."""
        lowest, highest = self.mixing.reach(self.mixing.target)
        concat = self.target_mode == "concat"
        found: list[Literal["teacher", "student"]] = []
        if concat or highest > 0:
            found.append("teacher")
        if concat or lowest < 1:
            found.append("student")
        return tuple(found)

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher is asked at some step of the run."""
        in_mask = self.masker.guided and self.mixing.reach(self.mixing.mask)[1] > 0
        return in_mask or "teacher" in self.targets or self.decoder_input == "features"

    @property
    def needs_copy(self) -> bool:
        """Whether the student's copy is asked at some step of the run."""
        in_mask = self.masker.guided and self.mixing.reach(self.mixing.mask)[0] < 1
        return in_mask or "student" in self.targets

    @property
    def weights(self) -> str:
        """The teacher's, in words."""
        concat = self.target_mode == "concat"
        words = self.mixing.describe(in_mask=self.masker.guided, in_target=not concat)
        return f"{words}; both features count alike in the target" if concat else words

    @property
    def pace(self) -> str:
        """How the student's copy moves."""
        if self.half_life is None:
            return str(self.momentum)
        return f"momentum with which half is forgotten in {100 * self.half_life:g} % of the steps"

    def build(self, steps: int | None = None, teacher: Teacher | None = None) -> "CMTMAE":
        """The method for a run of `steps`; `teacher` in place of the config's, if given."""
        encoder = self.encoder.build()
        teacher = (teacher or self.teacher.build(encoder)) if self.needs_teacher else None
        momentum = self.momentum
        if self.half_life is not None and steps:
            momentum = Momentum(momentum_of_half_life(self.half_life * steps))
        student = None
        if self.needs_copy:
            student = EMATeacher(encoder, momentum, steps, "the student's copy", output=self.student_output)
        pixels = self.pixels.build(encoder) if self.pixel_weight else None
        heads = self._heads(encoder.width, teacher, pixels)
        width = encoder.width
        if self.decoder_input == "features":
            assert teacher is not None
            width += teacher.width
        build = self.decoder.build if self.decoder_form == "mae" else self.decoder.build_prompting
        return CMTMAE(
            encoder,
            build(width, encoder.num_prefix, encoder.grid, sum(heads.values())),
            heads,
            self.masker,
            teacher,
            student,
            pixels,
            mixing=self.mixing,
            scores=self.scores,
            targets=self.targets,
            target_mode=self.target_mode,
            decoder_input=self.decoder_input,
            normalise=self.normalise,
            distance=self.distance,
            positions=self.positions,
            predict_class=self.predict_class,
            pixel_weight=self.pixel_weight,
            half_life=self.half_life,
            steps=steps,
            half_precision=self.guide_precision == "bfloat16",
        )

    def _heads(self, width: int, teacher: Teacher | None, pixels: PixelTarget | None) -> dict[str, int]:
        """What the decoder's last layer says of a patch: names and widths of its heads, one after the other."""
        widths = {"student": width} | ({} if teacher is None else {"teacher": teacher.width})
        of = [widths[name] for name in self.targets]
        if self.target_mode == "concat":
            heads = {"features": sum(of)}
        elif self.target_mode == "blend" or self.shared_head:
            if len(set(of)) > 1:
                raise ValueError(
                    f"CMTMAEConfig.target_mode must be weighted with two heads, or concat, for a teacher of another "
                    f"width than the student; got {self.target_mode} for {of[0]} and {of[1]} numbers. Change it, or "
                    f"choose another teacher."
                )
            heads = {"features": of[0]}
        else:
            heads = dict(zip(self.targets, of, strict=True))
        return heads | ({} if pixels is None else {"pixels": pixels.dim})


@dataclass(frozen=True)
class CMTMAEDraws:
    """All that is random in a step, and what the guiding networks say: they are asked once.

    Args:
        mask: What is hidden.
        teacher: What is to be predicted of the teacher's features, normalised; None: nothing is.
        student: The same of the student's copy; zeros while it has no weight yet.
        teacher_weight: In the target, a number.
        context: What the teacher says of the visible patches; None unless the decoder gets it.
        facts: Numbers for the log.
    """

    mask: Mask
    teacher: Float[Tensor, "B T K"] | None
    student: Float[Tensor, "B T D"] | None
    teacher_weight: Float[Tensor, ""]
    context: Float[Tensor, "B V K"] | None = None
    facts: Mapping[str, Tensor] = field(default_factory=dict)


class CMTMAE(Method):
    """Student and decoder around a mask, and two networks without one; `CMTMAEConfig` explains the settings.

    Args:
        encoder: The student's.
        decoder: Its last layer has the heads one after the other.
        heads: Their names and widths: "teacher" and "student", or "features" for both, and "pixels".
        masker: What is hidden.
        teacher: None, where it is never asked.
        student: The student's copy; None, where it is never asked.
        pixels: None, where none are predicted.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: MAEDecoder | PromptingDecoder,
        heads: Mapping[str, int],
        masker: Masker,
        teacher: Teacher | None,
        student: EMATeacher | None,
        pixels: PixelTarget | None = None,
        *,
        mixing: Mixing,
        scores: Scores,
        targets: tuple[str, ...],
        target_mode: TargetMode = "weighted",
        decoder_input: DecoderInput = "latent",
        normalise: FeatureNormalisation = "biased",
        distance: Distance,
        positions: Positions = "masked",
        predict_class: bool = False,
        pixel_weight: float = 0.0,
        half_life: float | None = None,
        steps: int | None = None,
        half_precision: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.heads, self.masker = encoder, decoder, dict(heads), masker
        self.teacher, self.student, self.pixels = teacher, student, pixels
        self.mixing, self.scores, self.targets, self.target_mode = mixing, scores, targets, target_mode
        self.decoder_input, self.normalise, self.distance = decoder_input, normalise, distance
        self.positions, self.predict_class, self.pixel_weight = positions, predict_class, pixel_weight
        self.half_life, self.half_precision, self.total = half_life, half_precision, steps
        if teacher is not None and teacher.grid != encoder.grid:
            raise ValueError(
                f"CMTMAE.teacher must have the student's grid of {encoder.grid[0]} x {encoder.grid[1]} patches; got "
                f"{teacher.grid[0]} x {teacher.grid[1]}."
            )
        if predict_class and "teacher" in targets and teacher is not None and not teacher.num_prefix:
            raise ValueError(
                f"CMTMAEConfig.predict_class must be False for a teacher without a class token ({teacher.name}); "
                f"got True. Give --method.predict_class False, or another teacher."
            )
        self.record = (
            GuidanceRecord(encoder.in_chans, encoder.image_size, encoder.num_patches) if masker.guided else None
        )
        for guide, query, share in ((teacher, scores.teacher_query, 1), (student, scores.student_query, 0)):
            if guide is not None and masker.guided and mixing.reach(mixing.mask)[share] != 1 - share:
                guide.check_query(query)
        self._draw_heads()
        if self.record is not None and steps:
            self.record.begin(steps)
        self.requirements = Requirements.of(encoder.config)

    @torch.no_grad()
    def _draw_heads(self) -> None:
        """Several heads in one layer begin as each would alone."""
        if len(self.heads) > 1:
            for rows in self.decoder.decoder_pred.weight.split(list(self.heads.values())):
                nn.init.xavier_uniform_(rows)

    @torch.no_grad()
    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> CMTMAEDraws:
        """Ask both networks about whole images, mix what they attend to, hide, and keep what is to be predicted."""
        in_mask, in_target = self.mixing.at(step, self.total)
        guided, concat = self.masker.guided, self.target_mode == "concat"
        teacher = student = None
        if (guided and in_mask > 0) or in_target > 0 or concat or self.decoder_input == "features":
            assert self.teacher is not None
            query = self.scores.teacher_query if guided and in_mask > 0 else None
            teacher = ask(self.teacher, batch.images, query, self.half_precision)
        if (guided and in_mask < 1) or in_target < 1 or concat:
            assert self.student is not None
            query = self.scores.student_query if guided and in_mask < 1 else None
            student = ask(self.student, batch.images, query, self.half_precision)

        maps = self.maps(teacher, student, in_mask)
        mask = draw_mask(self.masker, batch, self.encoder.grid, generator, maps.get("mask"))
        like = batch.images.new_zeros((), dtype=torch.promote_types(batch.images.dtype, torch.float32))
        facts = {"mask_teacher_weight": like + in_mask} if guided else {}
        facts |= {} if concat else {"target_teacher_weight": like + in_target}
        if self.record is not None:
            if self.record.is_due(step):  # in the first part of a step, if it has several
                self._look(self.record, batch, step, in_mask)
            facts["overlap"] = self.record.overlap(step).to(like)
        for name in ("teacher", "student", "mask") if guided else ():
            facts[f"entropy_{name}"] = evenness(maps[name]).to(like) if name in maps else like + math.nan
        targets = {
            name: self.wanted(said, mask)
            for name, said in (("teacher", teacher), ("student", student))
            if said is not None and name in self.targets
        }
        if "student" in self.targets:
            asked = student is not None
            facts["student_std"] = deviation(student.patches).to(like) if asked else like + math.nan  # type: ignore[union-attr]
        for name in self.targets:  # that have no weight now: forward is the same in every step
            if name not in targets:
                guide = self.teacher if name == "teacher" else self.student
                (other,) = targets.values()
                assert guide is not None
                targets[name] = other.new_zeros(*other.shape[:2], guide.width)
        context = None
        if self.decoder_input == "features":
            assert teacher is not None
            context = normalise_features(take(teacher.patches, mask.ids_keep), self.normalise)
        return CMTMAEDraws(mask, targets.get("teacher"), targets.get("student"), like + in_target, context, facts)

    def _look(self, record: GuidanceRecord, batch: Batch, step: int, in_mask: float) -> None:
        """What guides the masks of the recorded images now."""
        if step == 0:
            record.meet(batch.images)
        teacher, student = (
            None
            if guide is None or query not in guide.queries
            else ask(guide, record.images, query, self.half_precision)
            for guide, query in (
                (self.teacher, self.scores.teacher_query),
                (self.student, self.scores.student_query),
            )
        )
        maps = self.maps(teacher, student, in_mask)
        looked_at = Batch(record.images, total=len(record.images))
        generator = torch.Generator(batch.images.device).manual_seed(step)  # the step's own draws stay as they are
        record.add(step, maps, draw_mask(self.masker, looked_at, self.encoder.grid, generator, maps["mask"]).masked)

    def maps(
        self, teacher: Guidance | None, student: Guidance | None, weight: float
    ) -> dict[str, Float[Tensor, "B N"]]:
        """Scores of the patches by "teacher" and "student", where they were asked for attention, and mixed: "mask"."""
        said = {"teacher": teacher, "student": student}
        maps = {
            name: self.scores(guidance.attention)
            for name, guidance in said.items()
            if guidance is not None and guidance.attention is not None
        }
        if len(maps) == 2:
            maps["mask"] = weight * maps["teacher"] + (1 - weight) * maps["student"]
        elif maps:
            maps["mask"] = next(iter(maps.values()))
        return maps

    def wanted(self, said: Guidance, mask: Mask) -> Float[Tensor, "B T K"]:
        """The normalised features that are to be predicted."""
        tokens = said.patches if self.positions == "all" else take(said.patches, mask.ids_mask)
        if self.predict_class:
            tokens = torch.cat([said.prefix[:, :1], tokens], dim=1)
        return normalise_features(tokens, self.normalise)

    def forward(self, batch: Batch, draws: CMTMAEDraws) -> dict[str, Tensor]:
        """The student reads the visible patches; the decoder predicts what the two networks say of the whole image."""
        mask = draws.mask
        latent = self.encoder(batch.images, mask.ids_keep)  # visible patches only
        if draws.context is not None:
            latent = beside(latent, draws.context)
        everywhere = self.positions == "all"
        prediction = self.decoder(latent, mask, everywhere, self.predict_class)  # (B, T, all heads)
        said = dict(zip(self.heads, prediction.split(list(self.heads.values()), dim=-1), strict=True))
        outputs = self.score(said, draws)
        if self.pixels is not None:
            patches = said["pixels"][:, int(self.predict_class) :]
            ids = every_id(mask) if everywhere else mask.ids_mask
            outputs["loss_pixels"] = self.pixels.loss(patches, take(self.pixels(batch.images), ids))
            outputs["loss"] = outputs["loss"] + self.pixel_weight * outputs["loss_pixels"]
        return outputs | dict(draws.facts)

    def score(self, said: Mapping[str, Tensor], draws: CMTMAEDraws) -> dict[str, Tensor]:
        """The distance from the features: "loss", and its parts where it has any."""
        teacher, student, weight = draws.teacher, draws.student, draws.teacher_weight
        shared = "features" in said
        if teacher is None or student is None:  # one network alone, throughout the run
            (prediction,) = (part for name, part in said.items() if name != "pixels")
            target = student if teacher is None else teacher
            assert target is not None
            return {"loss": self.distance(prediction, target)}
        if self.target_mode == "concat":
            return {"loss": self.distance(said["features"], torch.cat([teacher, student], dim=-1))}
        if self.target_mode == "blend":
            return {"loss": self.distance(said["features"], weight * teacher + (1 - weight) * student)}
        loss_teacher = self.distance(said["features" if shared else "teacher"], teacher)
        loss_student = self.distance(said["features" if shared else "student"], student)
        loss = weight * loss_teacher + (1 - weight) * loss_student
        parts = {"loss_teacher": (loss_teacher, weight > 0), "loss_student": (loss_student, weight < 1)}
        return {"loss": loss} | {name: part.detach().where(counts, math.nan) for name, (part, counts) in parts.items()}

    def warning(self, logged: Mapping[str, float | None]) -> str | None:
        """Whether the copy says nearly the same of all images, which then is a target that a position alone meets."""
        spread = logged.get("student_std")
        if spread is None or not spread < COLLAPSED:
            return None
        slower = "--method.half-life" if self.half_life is not None else "--method.momentum.start"
        return (
            f"the features of the student's copy have collapsed: what it says of a place differs by less than "
            f"{COLLAPSED} of its size from image to image (student_std). Raise --method.mixing.teacher-weight or "
            f"{slower}."
        )

    def exports(self) -> dict[str, Any]:
        """The student's encoder, and its decoder for going on."""
        if isinstance(self.decoder, MAEDecoder):
            return {"encoder": self.encoder, "decoder": self.decoder}
        return super().exports()


def beside(latent: Features, context: Float[Tensor, "B V K"]) -> Features:
    """Each visible patch with what the teacher says of it beside; nothing beside prefix tokens."""
    nothing = context.new_zeros(*latent.prefix.shape[:2], context.shape[2])
    return Features(torch.cat([latent.prefix, nothing], dim=-1), torch.cat([latent.patches, context], dim=-1))


def every_id(mask: Mask) -> Int[Tensor, "B N"]:
    """All patches of every image, in raster order."""
    return torch.cat([mask.ids_keep, mask.ids_mask], dim=1).sort(dim=1).values


def deviation(features: Float[Tensor, "B N K"]) -> Float[Tensor, ""]:
    """How far what is said of a place differs from image to image, over its size: 0 where the image does not matter."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    if len(features) < 2:
        return features.new_tensor(math.nan)  # of one image nobody can say
    return features.std(dim=0).mean() / features.square().mean().sqrt()


def evenness(scores: Float[Tensor, "B N"]) -> Float[Tensor, ""]:
    """Entropy of the scores as a share of its largest value, mean over the images: 1, where all patches score alike."""
    share = scores / scores.sum(dim=1, keepdim=True)
    return -torch.special.xlogy(share, share).sum(dim=1).mean() / math.log(scores.shape[1])
