"""Mask patches by how much attention they get: the most attended, the least, or by a draw in which it is the weight."""

from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pantomim.core.frozen import frozen, in_words
from pantomim.core.mask import Mask
from pantomim.core.ranges import NotNegative
from pantomim.masking.base import Attended, Grid, Ratio, check_count, count_masked

Rule = Literal["topk_masked", "topk_visible", "topk_hint", "sample_masked", "sample_visible"]
Preset = Literal["milan", "attmask_high", "attmask_low", "attmask_hint"]

# AttMask-Hint: shares of all patches that are shown again, and among which, the most attended ones, they are drawn.
HINT_SHOW, HINT_AMONG = 0.1, 0.2  # the authors' attmask.py, where half of the patches are masked


@frozen
class AttentionMasker:
    """Attention decides; the method asks a network for it and hands it on.

    Paper: Hou et al. 2022, *MILAN*, arXiv:2208.06049, samples the visible patches; Kakogeorgiou et al. 2022, *What to
        Hide from Your Students* (AttMask), arXiv:2203.12719, masks the most attended; CMT-MAE, arXiv:2412.17566, masks
        what its map finds most informative.
    """

    kind: Literal["attention"] = "attention"
    # "topk_masked" masks the most attended patches, "topk_visible" the least attended; "topk_hint" the most attended
    # but for some that are drawn. "sample_masked" draws the masked ones without replacement, each with a probability in
    # proportion to its attention; "sample_visible" draws the visible ones so. What is equally attended is chosen by
    # chance
    rule: Rule = "topk_masked"
    ratio: Ratio = 0.75  # Share of masked patches, in (0, 1)
    # Which of the two counts is the share, rounded down: that of the visible patches, as in MAE's code, or of the
    # masked ones, as in AttMask's
    whole: Literal["visible", "masked"] = "visible"
    # Sampling adds this share of the mean attention to every patch's; 0: patches without attention come last
    eps: NotNegative = 0.0
    hint_show: float | None = None  # Of topk_hint alone: share of all patches that is shown again; None: 0.1, AttMask's
    # Of topk_hint alone: share of most attended patches from which these are drawn; None: 0.2, AttMask's
    hint_among: float | None = None
    # Of topk_hint alone: the next in rank are masked in their place; None: they are. AttMask does not
    hint_refill: bool | None = None
    preset: Preset | None = None  # A published way in place of all of these but the ratio, see `PUBLISHED`

    varies = False
    guided = True
    strategies = ()  # a network must be asked

    def __post_init__(self) -> None:
        if self.eps and not self.rule.startswith("sample"):
            raise ValueError(
                f"AttentionMasker.eps goes with sample_masked and sample_visible; got {self.eps} with {self.rule}. "
                f"Leave it out."
            )
        if self.rule != "topk_hint" and (self.hint_show, self.hint_among, self.hint_refill) != (None, None, None):
            raise ValueError(
                f"AttentionMasker.hint_show, hint_among and hint_refill go with topk_hint; got them with {self.rule}. "
                f"Leave them out."
            )
        show, among = self.hint
        if not 0 < show <= among < 1:
            raise ValueError(
                f"AttentionMasker.hint_show must be above 0 and at most hint_among, which is below 1; got {show} and "
                f"{among}. Give shares of all patches."
            )

        if self.preset is not None and replace(self, preset=None) != AttentionMasker(ratio=self.ratio):
            raise ValueError(
                f"AttentionMasker.preset decides all but the ratio; got {self.preset} and other settings beside it. "
                f"Leave one of the two out; {self.preset} is {in_words(self.explicit)}."
            )

    @property
    def manner(self) -> str:
        """See `Masker.manner`."""
        return f"by attention ({self.preset or self.rule})"

    @property
    def explicit(self) -> "AttentionMasker":
        """The same with a preset written out."""
        return self if self.preset is None else published(self.preset, self.ratio)

    @property
    def hint(self) -> tuple[float, float]:
        """Shares of all patches: what topk_hint shows again, and from which of the most attended ones."""
        show = HINT_SHOW if self.hint_show is None else self.hint_show
        return show, HINT_AMONG if self.hint_among is None else self.hint_among

    def num_masked(self, grid: Grid) -> int:
        """See `Masker.num_masked`."""
        masked, shown, _ = self.counts(grid)
        return masked - shown if self.explicit.hint_refill is False else masked

    def counts(self, grid: Grid) -> tuple[int, int, int]:
        """Patches that are masked, shown again, and to be drawn from for that."""
        if self.preset is not None:
            return self.explicit.counts(grid)
        num_patches = grid[0] * grid[1]
        if self.whole == "visible":
            masked = count_masked("AttentionMasker", self.ratio, num_patches)
        else:
            masked = check_count("AttentionMasker", self.ratio, int(num_patches * self.ratio), num_patches)
        if self.rule != "topk_hint":
            return masked, 0, 0
        shown, among = (int(num_patches * share) for share in self.hint)
        words = f"on a grid of {grid[0]} x {grid[1]}, {masked} masked"
        if not 0 < shown < masked or among > masked:
            raise ValueError(
                f"AttentionMasker.hint_show and hint_among must be at least one patch and fewer than are masked; got "
                f"{shown} of {among} {words}. Use other shares."
            )
        if self.hint_refill is not False and masked + shown > num_patches:
            raise ValueError(
                f"AttentionMasker.hint_show must leave patches to mask in the place of those that are shown; got "
                f"{shown} {words}. Lower the ratio or the share, or set hint_refill to False."
            )
        return masked, shown, among

    def __call__(self, batch_size: int, grid: Grid, generator: torch.Generator, attention: Attended = None) -> Mask:
        """See `Masker.__call__`; attention of any scale, as long as it is not negative."""
        if self.preset is not None:
            return self.explicit(batch_size, grid, generator, attention)
        if attention is None:
            raise ValueError(
                "AttentionMasker.attention must be given, as it decides; got none. Choose a method that asks a network "
                "for it (cmt_mae), or another masker."
            )
        _, shown, among = self.counts(grid)
        if self.rule.startswith("sample"):
            keys = draw_order(attention, self.eps, generator)
            scores = keys if self.rule == "sample_masked" else -keys
        else:
            ranks = ranks_of(attention, generator)
            scores = (-ranks if self.rule == "topk_visible" else ranks).float()
        if self.rule == "topk_hint":
            scores = _with_hint(scores, shown, among, generator)
        return Mask.from_scores(scores, self.num_masked(grid))


# Published ways, by name: all settings but the ratio.
PUBLISHED: dict[Preset, dict[str, Any]] = {
    "milan": {"rule": "sample_visible"},  # MILAN's models_milan.py: the visible patches are drawn by attention
    "attmask_high": {"rule": "topk_masked", "whole": "masked"},  # AttMask's attmask.py, as the two below
    "attmask_low": {"rule": "topk_visible", "whole": "masked"},
    "attmask_hint": {"rule": "topk_hint", "whole": "masked", "hint_refill": False},
}


def published(preset: Preset, ratio: float = 0.75) -> AttentionMasker:
    """A published way with its settings written out."""
    return AttentionMasker(ratio=ratio, **PUBLISHED[preset])


def ranks_of(attention: Float[Tensor, "B N"], generator: torch.Generator) -> Int[Tensor, "B N"]:
    """The place of each patch when they are sorted, the least attended first; equal ones in random order."""
    shuffled = torch.rand(attention.shape, generator=generator, device=attention.device).argsort(dim=1)
    order = shuffled.gather(1, attention.gather(1, shuffled).argsort(dim=1, stable=True))
    return order.argsort(dim=1)


def draw_order(attention: Float[Tensor, "B N"], eps: float, generator: torch.Generator) -> Float[Tensor, "B N"]:
    """Keys whose largest are a draw without replacement in proportion to the attention, the first drawn the largest.

    Each is the logarithm of a weight over an exponential variable: of those left, each is the next with a probability
    in proportion to its weight. Patches without any weight come last, in random order.
    """
    weights = attention.to(torch.promote_types(attention.dtype, torch.float32))
    weights = weights + eps * weights.mean(dim=1, keepdim=True)
    noise = torch.empty_like(weights).exponential_(generator=generator)
    keys = weights.log() - noise.clamp_min(torch.finfo(noise.dtype).tiny).log()
    there = weights > 0
    lowest = keys.where(there, torch.inf).amin(dim=1, keepdim=True).clamp_max(0.0)
    return keys.where(there, lowest - 1 - noise)


def _with_hint(
    scores: Float[Tensor, "B N"], shown: int, among: int, generator: torch.Generator
) -> Float[Tensor, "B N"]:
    """The scores with those of `shown` of the `among` highest lowered below all others."""
    highest = scores.topk(among, dim=1).indices
    noise = torch.rand(highest.shape, generator=generator, device=scores.device)
    chosen = highest.gather(1, noise.topk(shown, dim=1).indices)
    return scores.scatter(1, chosen, -1.0)
