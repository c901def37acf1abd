"""What the engine knows of a method: five verbs that each has, and three that most leave as they are."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.batch import Batch
from pantomim.core.mask import Mask
from pantomim.masking.base import Masker
from pantomim.nn.momentum import EMA, Best, EMACopy
from pantomim.nn.position import TABLES
from pantomim.nn.vit import Encoder, EncoderConfig
from pantomim.teachers.base import Guidance

Scores = dict[str, float]
NUM_TOP = 5


@dataclass(frozen=True)
class Draws:
    """All that is random in a step of a method that draws masks alone."""

    mask: Mask
    guidance: Guidance | None = None  # of a teacher that was asked for the mask, so that it is asked once


@dataclass(frozen=True)
class Requirements:
    """The images that a method is trained on, as plain data."""

    in_chans: int
    image_size: tuple[int, int]
    patch_size: int
    channels_setting: str = "method.encoder.in_chans"  # where a config has the channels
    patch_setting: str = "method.encoder.patch_size"
    views: int = 1  # of each image; with 2, `Batch.second` is there
    whole_batch: bool = False  # an image's loss depends on the other images of its step, so that these come at once
    gathers: bool = False  # processes talk to each other within the forward pass
    num_classes: int | None = None  # that labels must have; None: it needs no labels
    even: bool = False  # images are mixed in pairs, so that each process and micro-batch needs an even number
    test_margin: float = 1.0  # the shorter side of a held-out image over that of its centre, which is looked at
    masks: bool = False  # a class for every pixel is learned; held-out images come whole

    @classmethod
    def of(cls, encoder: EncoderConfig, **others: Any) -> "Requirements":
        """Those of an encoder."""
        return cls(encoder.in_chans, encoder.image_size, encoder.patch_size, **others)


class Method(nn.Module, ABC):
    """A pre-training method: all that is random in `draw`, all that is learned in `forward`.

    The two are apart so that `forward` has no generator and no changing Python number: it compiles whole with static
    shapes, it repeats exactly, and a test can inject its own draws.
    """

    requirements: Requirements  # set in `__init__`
    exports_decoder = False  # whole, for pictures and for continuing to train

    @abstractmethod
    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> Any:
        """Draw all that is random, masks included; eager, without gradient.

        Draws are made for the global batch and cut to this batch's rows, so that another number of processes gives the
        same draws.
        """

    @abstractmethod
    def forward(self, batch: Batch, draws: Any) -> dict[str, Tensor]:
        """Tensors in, tensors out: "loss" is minimised, everything else is logged."""

    def update_ema(self, step: int) -> None:
        """Called once after each optimiser step: every EMA copy in the method moves towards what it copies."""
        for part in self.modules():
            if isinstance(part, EMACopy):
                part.update_ema(self, step)

    def exports(self) -> dict[str, Any]:
        """What outlives the run: "encoder", and beside it "decoder", a module, or "predictor", parameters by name.

        The predictor is all that is trained beside the encoder; a method without an encoder has "tokenizer" alone.
        """
        if self.exports_decoder:
            return {"encoder": self.encoder, "decoder": self.decoder}
        named = self.named_parameters()
        beside = {name: weight for name, weight in named if weight.requires_grad and not name.startswith("encoder.")}
        return {"encoder": self.encoder, "predictor": beside}

    def reset(self) -> None:
        """Called once other weights have been put in place before the first step: EMA copies are copied anew."""
        for part in self.modules():
            if isinstance(part, EMACopy):
                part.reset(self)

    def check_data(self, batches: Iterable[Tensor]) -> str | None:
        """A warning to print before the first step, having seen some training images; None: nothing is wrong."""
        check = getattr(getattr(self, "target", None), "check_data", None)
        return None if check is None else check(batches)

    def warning(self, logged: Mapping[str, float | None]) -> str | None:
        """What is wrong with a run, judged by a logged step; it is printed once. None: nothing is."""
        return None


class Task(Method):
    """A method that learns from labels: its `model` answers a question, and is judged by held-out images.

    The weights that answer best are kept in `best`, once `watch` has been called; where there is an `ema` of the
    weights, it is judged beside them. What is exported is the best.
    """

    metric: ClassVar[str]  # the score that decides; higher is better
    model: nn.Module
    ema: EMA | None
    best: Best | None

    def __init__(self) -> None:
        super().__init__()
        self.ema = self.best = None  # no attributes of the class, which would hide the modules

    @property
    def encoder(self) -> Encoder:
        """What pre-trained weights are copied into."""
        encoder = self.model.encoder
        assert isinstance(encoder, Encoder)
        return encoder

    @abstractmethod
    def tally(self, model: nn.Module, batch: Batch) -> Tensor:
        """What `model` makes of held-out images, as float64 counts that add up over batches and processes."""

    @abstractmethod
    def scores(self, tally: Tensor) -> dict[str, float]:
        """Shares and means by name, `metric` among them, from counts."""

    def take_encoder(self, weights: dict[str, Tensor], table: str) -> tuple[dict[str, Tensor], list[str]]:
        """An encoder's weights as ours takes them, and what was done with them; `table` names its position table.

        A final norm is left out where ours has none. A fixed table that stays fixed is that of its formula, not
        resampled: as CAE's authors do.
        """
        found, remarks = dict(weights), []
        if isinstance(self.encoder.norm, nn.Identity):
            found = {name: weight for name, weight in found.items() if not name.startswith("norm.")}
            remarks.append("the final norm is left out")
        own = self.encoder.pos_embed
        if own is not None and not own.requires_grad and table == TABLES.get(self.encoder.config.position):
            if not torch.equal(own, found["pos_embed"]):
                remarks.append("the fixed position table is that of its formula for the new size")
            found["pos_embed"] = own.detach()
        return found, remarks

    def watch(self) -> None:
        """Keep the best weights from now on."""
        self.best = Best(self.model)

    @torch.no_grad()
    def validate(self, step: int, batches: Callable[[], Iterable[Batch]], add: Callable[[Tensor], Tensor]) -> Scores:
        """Score the weights after `step` steps, and their average; `add` sums over processes. Keeps the best."""
        assert self.best is not None
        found: Scores = {}
        models = {"": self.model} | ({} if self.ema is None else {"_ema": self.ema.copy})
        for whose, model in models.items():
            scores = self.judge(model, batches(), add)
            self.best.see(model, scores[self.metric], step, averaged=bool(whose))
            found |= {f"val_{name}{whose}": value for name, value in scores.items()}
        return found

    @torch.no_grad()
    def judge(
        self, model: nn.Module, batches: Iterable[Batch], add: Callable[[Tensor], Tensor] = lambda tally: tally
    ) -> Scores:
        """Scores of a model, in evaluation mode, on held-out images; `add` sums over processes."""
        was_training = model.training
        model.eval()
        tally = sum((self.tally(model, batch) for batch in batches), start=torch.zeros((), dtype=torch.float64))
        model.train(was_training)
        return self.scores(add(tally))

    @property
    def chosen(self) -> nn.Module:
        """The weights that are exported: the best, else their average, else the last."""
        if self.best is not None and self.best.step > 0:
            return self.best.copy
        return self.model if self.ema is None else self.ema.copy

    def how_chosen(self) -> dict[str, Any]:
        """Which weights these are, for the record."""
        if self.best is None or self.best.step == 0:
            return {"weights": "last" if self.ema is None else "ema"}
        whose = "ema" if self.best.averaged else "weights"
        return {"step": int(self.best.step), "weights": whose, "metric": self.metric} | {
            "validation": float(self.best.score)
        }


class ClassTask(Task):
    """A task whose answer is one of `num_classes`."""

    metric: ClassVar[str] = "top1"
    num_classes: int

    @abstractmethod
    def logits(self, model: nn.Module, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B classes"]:
        """By the model, or by a copy of it."""

    def tally(self, model: nn.Module, batch: Batch) -> Tensor:
        """By class: images, those whose best guess is right, those with the right class among five; then the loss."""
        assert batch.labels is not None
        logits = self.logits(model, batch.images).double()
        right = logits.topk(min(NUM_TOP, logits.shape[1])).indices == batch.labels[:, None]
        ones, loss = torch.ones_like(right[:, 0]), F.cross_entropy(logits, batch.labels, reduction="none")
        columns = torch.stack([ones, right[:, 0], right.any(dim=1), loss]).double()
        return columns.new_zeros(4, self.num_classes).index_add_(1, batch.labels, columns).cpu()

    def scores(self, tally: Tensor) -> dict[str, float]:
        """Top-1, top-5, top-1 averaged over classes, and cross-entropy without smoothing."""
        number, top1, top5, loss = tally
        total, seen = number.sum(), number > 0
        shares = {"top1": top1.sum() / total, "top1_per_class": (top1[seen] / number[seen]).mean()}
        shares |= {"loss": loss.sum() / total} | ({"top5": top5.sum() / total} if len(number) > NUM_TOP else {})
        return {name: float(value) for name, value in shares.items()}


def check_masker(owner: str, masker: Masker, encoder: EncoderConfig) -> None:
    """Raise a ValueError unless a masker masks the same number of patches in every image of an encoder's grid."""
    masker.num_masked(encoder.grid)
    if masker.varies:
        raise ValueError(
            f"{owner}.masker must mask the same number of patches in every image, as the encoder takes the visible "
            f"ones as one tensor; got {masker.kind}, whose number varies. Set exact."  # type: ignore[attr-defined]
        )
