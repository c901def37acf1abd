"""Recipes of fine-tuning: how each paper trains its encoder with labels, and what we make of that for other images.

Where paper and code of MAE disagree, the numbers are those of the code, which
the released weights belong to.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pantomim.config import DataConfig, Duration, OptimConfig, Pretrain, Stages, Validation, read_plan
from pantomim.data.transforms import Crop
from pantomim.methods.supervised import SupervisedConfig
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig
from pantomim.recipes.recipe import BASE_WIDTH, NOT_MEASURED, Family, Scale
from pantomim.recipes.supervised import AUGMENT


@dataclass(frozen=True)
class Numbers:
    """Of one size on ImageNet-1K at 224x224; the rate is the peak at that batch, the score the published top-1."""

    epochs: int
    warmup: int
    batch: int
    lr: float
    layer_decay: float
    drop_path: float
    score: str
    clip: float | None = None
    repeats: int = 1
    layer_scale: float | None = None  # of pre-training


@dataclass(frozen=True)
class Preset:
    """How the authors of a paper fine-tune."""

    title: str
    sizes: Mapping[str, Numbers]
    parts: Mapping[str, Any]  # of the classifier
    note: str
    encoder: Mapping[str, Any] = field(default_factory=dict)

    def in1k(self, size: str) -> Pretrain:
        """The recipe of one size."""
        row = self.sizes[size]
        encoder: Any = {
            "drop_path": row.drop_path,
            "layer_scale": row.layer_scale,
            **ENCODER_SIZES[size],
            **self.encoder,
        }
        return Pretrain(
            recipe="finetune",
            data=DataConfig(crop=Crop(scale=(0.08, 1.0), flip=True), augment=AUGMENT, repeats=row.repeats),
            method=SupervisedConfig(  # smoothing 0.1, mixup 0.8, CutMix 1.0 in all, as in its defaults
                encoder=EncoderConfig((224, 224), 14 if size == "huge" else 16, **encoder), pool="mean", **self.parts
            ),
            optim=OptimConfig(
                base_lr=row.lr * 256 / row.batch,
                min_lr=1e-6,
                warmup=Duration(epochs=row.warmup),
                weight_decay=0.05,
                betas=(0.9, 0.999),
                layer_decay=row.layer_decay,
                decay_tokens=False,
                clip_norm=row.clip,
                schedule="beit" if self.parts["head_init"] == "beit" else "mae",  # of BEiT's scripts, and CAE's
            ),
            batch_size=row.batch,
            duration=Duration(epochs=row.epochs),
            validation=Validation(),
        )


MAES = {"head_init": "mae", "learn_positions": True}  # models_vit.py, main_finetune.py
PRESETS = {
    "mae": Preset(  # FINETUNE.md: 5e-4, 1e-3 and 1e-3 per 256 images
        "MAE",
        {
            "base": Numbers(100, 5, 1024, 2e-3, 0.65, 0.1, "83.6"),
            "large": Numbers(50, 5, 1024, 4e-3, 0.75, 0.2, "85.9"),
            "huge": Numbers(50, 5, 1024, 4e-3, 0.75, 0.3, "86.9"),
        },
        MAES,
        "the authors print the best epoch on the validation set",
    ),
    "beit": Preset(  # Table 13, modeling_finetune.py
        "BEiT",
        {
            "base": Numbers(100, 20, 1024, 4e-3, 0.65, 0.1, "83.2 (800 epochs)", repeats=3, layer_scale=0.1),
            "large": Numbers(50, 5, 1024, 4e-3, 0.75, 0.1, "85.2", layer_scale=1e-5),
        },
        {"head_init": "beit"},
        "rate: searched in 2e-3 ... 5e-3 by the authors, who do not say which; the middle is ours",
        {"position": "none", "relative_position": "blocks", "attention_bias": "qv", "initialisation": "beit"},
    ),
    "cae": Preset(  # scripts/cae_*_finetune.sh; run_class_finetuning.py: norm becomes fc_norm
        "CAE",
        {
            "base": Numbers(100, 5, 4096, 8e-3, 0.65, 0.1, "83.9 (1600 epochs)", layer_scale=0.1),
            "large": Numbers(50, 5, 4096, 2e-3, 0.75, 0.2, "86.2", layer_scale=1e-5),
        },
        {"head_init": "beit", "norm_init": "pretrained"},
        "positions: fixed, those of the formula for the image size, beside new tables of relative positions",
        {
            "position": "sincos_rows_first",
            "relative_position": "blocks",
            "attention_bias": "qv",
            "initialisation": "cae",
        },
    ),
    "dbot": Preset(  # FINETUNE.md: 3e-4 per 256 images; main_finetune.py
        "dBOT",
        {
            "base": Numbers(100, 5, 1024, 1.2e-3, 0.65, 0.1, "84.5"),
            "large": Numbers(50, 5, 1024, 1.2e-3, 0.75, 0.25, "86.6", clip=1.0),
            "huge": Numbers(50, 5, 1024, 1.2e-3, 0.75, 0.3, "87.4"),
        },
        MAES | {"head_init": "dbot"},
        "ViT-H: the authors accumulate two micro-batches",
    ),
    "colormae": Preset(  # vit-base-p16_8xb128-coslr-100e_in1k.py
        "ColorMAE",
        {"base": Numbers(100, 5, 1024, 2e-3, 0.65, 0.1, "83.8 (1600 epochs, best epoch)")},
        MAES,
        "ViT-L: not stated by the authors",
    ),
    "cmt_mae": Preset(
        "CMT-MAE (a default of ours: MILAN's)",
        {"base": Numbers(100, 5, 1024, 4e-4, 0.65, 0.1, "85.7 (whose recipe is not stated)")},
        MAES,
        "CMT-MAE's authors state no recipe: all numbers are MILAN's",
    ),
}


# Ours, for other images than ImageNet's: a set of so many images counts as large, and takes the paper's numbers.
LARGE = 100_000
FEW = 3_000  # images, below which nothing is mixed nor erased
SMALL_SIDE = 96  # pixels, up to which crops and RandAugment are milder and a test image is looked at whole
SEEN = 200_000  # images that a run on a small set sees, within 20 and 60 passes
PEAK_LR = 1e-3  # of encoders narrower than ViT-B


def rescale(paper: Pretrain, to: Scale) -> Pretrain:
    """A paper's recipe for other images, labels and encoders: one rule for all presets, and ours.

    The encoder is the pre-trained one at its own image size, with the preset's tables of relative positions. Small sets
    see 200,000 images within 20 and 60 epochs, in batches of a 32nd of the set, 32 to 128; narrow encoders get a peak
    rate of 1e-3 and a layer decay of 0.75. Mixing and erasing need 3,000 images and 30 epochs, by the preset's own
    length. A part of a large set gets a fifth of the steps of the whole, a tenth of them warm-up, and a layer decay one
    step stronger.
    """
    facts, method = to.facts, paper.method
    assert isinstance(method, SupervisedConfig)
    if facts.num_classes is None:
        raise ValueError(
            "finetune must have labels to learn from; got images without them. Put the images of each class into a "
            "folder of its own, or give labels in an .npz or a list; pantomim pretrain learns without labels."
        )
    encoder = encoder_for(method.encoder, to)
    num_images, small_images = facts.num_images, max(encoder.image_size) <= SMALL_SIDE
    narrow, large = encoder.width < BASE_WIDTH, num_images >= LARGE
    epochs, share = paper.duration.epochs or 0, (paper.optim.warmup.epochs or 0) / (paper.duration.epochs or 1)
    decay, batch_size, length = paper.optim.layer_decay, paper.batch_size, Duration(epochs=epochs)
    if few := to.whole is not None and num_images < to.whole >= LARGE:
        batch_size = min(batch_size, 1 << num_images.bit_length() - 1)
        share, decay, large = 0.1, decay - 0.1, True
        length = Duration(steps=round(epochs * to.whole / paper.batch_size / 5))
    elif not large:
        epochs = max(20, min(60, round(SEEN / num_images)))
        batch_size = max(32, min(128, 1 << ((num_images // 32) | 1).bit_length() - 1))
        length = Duration(epochs=epochs)
    warmup = Duration(epochs=share * epochs) if length.steps is None else Duration(steps=round(share * length.steps))
    mixes = large or (num_images >= FEW and epochs >= 30)
    augment = replace(
        AUGMENT,
        rand_augment=2 if to.in_colour else 0,
        rand_magnitude=5.0 if small_images else 9.0,
        erasing=AUGMENT.erasing if mixes else 0.0,
        mean=encoder.mean,
        std=encoder.std,
    )
    crop = replace(paper.data.crop, scale=(0.4, 1.0)) if small_images else paper.data.crop
    optim = replace(
        paper.optim,
        base_lr=PEAK_LR * 256 / batch_size if narrow else paper.optim.base_lr,
        layer_decay=0.75 if narrow else decay,
        warmup=warmup,
    )
    return replace(
        paper,
        data=replace(to.data, crop=crop, augment=augment, repeats=paper.data.repeats if large and not few else 1),
        method=replace(
            method,
            encoder=encoder,
            num_classes=facts.num_classes,
            pool=method.pool,
            mixup=method.mixup if mixes else 0.0,
            cutmix=method.cutmix if mixes else 0.0,
            test_margin=1.0 if small_images or max(encoder.image_size) > 224 else method.test_margin,
        ),
        optim=optim,
        batch_size=batch_size,
        duration=length,
    )


def encoder_for(published: EncoderConfig, to: Scale) -> EncoderConfig:
    """The pre-trained encoder at its own image size, with the preset's drop path and tables of relative positions."""
    start = to.start
    if start is None:
        return replace(to.encoder_like(published), drop_path=published.drop_path)
    relative = start.relative_position
    if published.relative_position == "blocks" and not start.registers:
        relative = "blocks"
    return replace(start, drop_path=published.drop_path, relative_position=relative)


def from_scratch(run: Pretrain) -> Pretrain:
    """The same run without pre-trained weights: one rate for all layers, as none has anything to keep, and DeiT's head.

    A head that starts near zero, as beside pre-trained weights, would only hold the others back.
    """
    method = replace(run.method, head_init="deit") if isinstance(run.method, SupervisedConfig) else run.method
    return replace(run, init=None, method=method, optim=replace(run.optim, layer_decay=1.0))


FINETUNING = tuple(
    Family(
        f"finetune_{name}",
        f"Fine-tuning as {preset.title}",
        preset.in1k,
        {size: (NOT_MEASURED, numbers.score) for size, numbers in preset.sizes.items()},
        rescale=rescale,
        bare=f"finetune_{name}",
        notes=(preset.note, "partners in mixing are neighbours in the global batch; the authors mix in reverse order"),
        trains="classifier",
    )
    for name, preset in PRESETS.items()
)


def preset_of(encoder: str | None) -> str:
    """The preset for a run's encoder, by the recipe that the run names: whose method it is; else MAE's."""
    path = Path(encoder or "")
    path = (path.parent if path.suffix else path) / "config.yaml"
    if not path.is_file():
        return "mae"
    config = read_plan(path)
    run = config.run if isinstance(config, Stages) else config
    task, _, preset = run.recipe.partition("_")
    if task in ("finetune", "segment"):
        return next((name for name in PRESETS if preset.startswith(name)), "mae")
    if run.recipe.startswith("colormae"):
        return "colormae"
    return run.method.kind if run.method.kind in PRESETS else "mae"
