"""Bare methods that continue from given weights: one rule for all, applied to what the bare method makes of the data.

What continuing changes is ours, with these precedents: a lower rate the further a layer is from the output, and a short
warm-up, as where MAE's weights are fine-tuned (He et al. 2022, arXiv:2111.06377, Table 9); MAE and DINOv2 are continued
with their blocks frozen or adapted by LoRA in ExPLoRA (Khanna et al. 2024, arXiv:2406.10973): `optim.freeze_blocks` and
`optim.lora` are for that, and off here.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pantomim.config import Duration, Pretrain
from pantomim.methods.guides import teacher_of, with_teacher
from pantomim.recipes.beit import BEIT
from pantomim.recipes.cae import CAE
from pantomim.recipes.cmt_mae import CMT_MAE
from pantomim.recipes.colormae import COLOR_MAE
from pantomim.recipes.data2vec import DATA2VEC
from pantomim.recipes.dbot import DBOT
from pantomim.recipes.mae import MAE
from pantomim.recipes.recipe import Family, Recipe
from pantomim.recipes.simmim import SIMMIM

PEAK_LR = 1e-5  # of any batch and width. Ours; for MAE too high, for dBOT not (docs/results/continue.md)
PIXELS_COST = (
    "Pixels as target cost features what they knew of classes where we measured (docs/results/continue.md): begin with "
    "continue_dbot."
)
LAYER_DECAY = 0.75  # Table 9; what is new, such as a decoder, learns at the full rate
WARMUP = 0.05  # of the run: 5 of 100 epochs (Table 9)
SEEN, PASSES = 300_000, 100  # images that a run sees, in so many passes at most. Ours
MAX_BATCH = 256  # a 32nd of the images, but at least 32, so that a small set still has many steps. Ours


@dataclass(frozen=True)
class Continued(Family):
    """A bare method that needs weights to start from, on 16 patches or more; its named recipes are the method's."""

    @property
    def recipes(self) -> Iterator[Recipe]:
        """None."""
        return iter(())

    @property
    def summary(self) -> str:
        """One line on it."""
        return f"{self.title}, continued from given weights: rate, layer decay, warm-up and length are ours."

    def check_start(self, init: str | None, size: str | None) -> None:
        """Raise a ValueError unless weights, and no sizes beside theirs, are given."""
        if init is None:
            fresh = "mae" if self.bare == "continue" else str(self.bare).removeprefix("continue_")
            raise ValueError(
                f"prepare.init must name the weights that {self.bare} continues from; got none. It takes the folder of "
                f"a run, a file of weights, timm:NAME, timm:NAME@FILE, hf:NAME, hf:FOLDER, open_clip:NAME:TAG or "
                f"clip:FILE: ViT, DeiT III, DINOv2, DINOv3, BEiT, EVA-02, CLIP, SigLIP, MAE and our own. Without "
                f"weights: {fresh}."
            )
        if size is not None:
            raise ValueError(
                f"prepare.size must be left out for {self.bare}, whose sizes are those of {init}; got {size}."
            )


def continued(run: Pretrain, init: str, num_images: int) -> Pretrain:
    """A bare method's run as a continuation of `init`; a teacher not named, or random, is that network at the start."""
    method: Any = run.method
    if hasattr(method, "predict_class"):
        method = replace(method, predict_class=None)  # SigLIP has no class token
    if (teacher := teacher_of(method)) is not None and teacher.source in ("", "random"):
        method = with_teacher(method, teacher.of(init))
    epochs = max(1, min(PASSES, round(SEEN / num_images)))
    batch_size = min(run.batch_size, max(32, min(MAX_BATCH, 1 << max(num_images // 32, 1).bit_length() - 1)))
    schedule: Any = {"schedule": "mae", "start_lr": 0.0, "min_lr": 0.0, "lead": 0}  # half a cosine to zero, of all
    schedule |= {"base_lr": PEAK_LR * 256 / batch_size, "warmup": Duration(epochs=WARMUP * epochs)}
    optim = replace(run.optim, layer_decay=LAYER_DECAY, **schedule)
    return replace(run, method=method, optim=optim, batch_size=batch_size, duration=Duration(epochs=epochs))


CONTINUED = tuple(
    Continued(**vars(family) | {"title": title, "bare": name, "others": (), "small": {}, "stages": None, "least": 4})
    for family in (MAE, COLOR_MAE[0], BEIT, CAE, DBOT, SIMMIM, DATA2VEC, CMT_MAE)
    for name in ("continue" if family is MAE else f"continue_{family.bare}",)
    for title in (re.split(",| in ", family.title)[0],)  # without its stages or its variant
)
