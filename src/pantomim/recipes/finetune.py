"""Recipes of fine-tuning: how each paper trains its encoder with labels, and what we make of that for other images.

Where paper and code of MAE disagree, the numbers are those of the code, which the released weights belong to.
"""

from dataclasses import replace
from pathlib import Path

from pantomim.config import DataConfig, Duration, Lora, Pretrain, Stages, Validation, read_plan
from pantomim.data.transforms import Crop
from pantomim.methods.supervised import SupervisedConfig
from pantomim.nn.vit import EncoderConfig
from pantomim.recipes.recipe import BASE_WIDTH, BEIT_ENCODER, CAE_ENCODER, Numbers, Preset, Scale
from pantomim.recipes.supervised import AUGMENT


def in1k(preset: Preset, size: str) -> Pretrain:
    """A preset's recipe of one size on ImageNet-1K at 224x224; scores are top-1."""
    row = preset.sizes[size]
    warmup = Duration(epochs=row.warmup)
    return Pretrain(
        recipe="finetune",
        data=DataConfig(crop=Crop(scale=(0.08, 1.0), flip=True), augment=AUGMENT, repeats=row.repeats),
        # smoothing 0.1, mixup 0.8, CutMix 1.0 in all, as in its defaults
        method=SupervisedConfig(encoder=preset.encoder_of(size, (224, 224)), pool="mean", **preset.parts),
        optim=preset.optim_of(size, min_lr=1e-6, warmup=warmup, decay_tokens=False, clip_norm=row.clip),
        batch_size=row.batch,
        duration=Duration(epochs=row.epochs),
        validation=Validation(),
    )


MAES = {"head_init": "mae", "learn_positions": True}  # models_vit.py, main_finetune.py
TABLES = {"relative_position": "blocks"}
PRESETS = {
    "mae": Preset(  # FINETUNE.md: 5e-4, 1e-3 and 1e-3 per 256 images
        "MAE",
        {
            "base": Numbers(2e-3, 0.65, 0.1, "83.6", epochs=100),
            "large": Numbers(4e-3, 0.75, 0.2, "85.9"),
            "huge": Numbers(4e-3, 0.75, 0.3, "86.9"),
        },
        "the authors print the best epoch on the validation set",
        MAES,
    ),
    "beit": Preset(  # Table 13, modeling_finetune.py
        "BEiT",
        {
            "base": Numbers(4e-3, 0.65, 0.1, "83.2 (800 epochs)", 0.1, epochs=100, warmup=20, repeats=3),
            "large": Numbers(4e-3, 0.75, 0.1, "85.2", 1e-5),
        },
        "rate: searched in 2e-3 ... 5e-3 by the authors, who do not say which; the middle is ours",
        {"head_init": "beit"},
        BEIT_ENCODER | TABLES,
        schedule="beit",
    ),
    "cae": Preset(  # scripts/cae_*_finetune.sh; run_class_finetuning.py: norm becomes fc_norm
        "CAE",
        {
            "base": Numbers(8e-3, 0.65, 0.1, "83.9 (1600 epochs)", 0.1, batch=4096, epochs=100),
            "large": Numbers(2e-3, 0.75, 0.2, "86.2", 1e-5, batch=4096),
        },
        "positions: fixed, those of the formula for the image size, beside new tables of relative positions",
        {"head_init": "beit", "norm_init": "pretrained"},
        CAE_ENCODER | TABLES,
        schedule="beit",
    ),
    "dbot": Preset(  # FINETUNE.md: 3e-4 per 256 images; main_finetune.py
        "dBOT",
        {
            "base": Numbers(1.2e-3, 0.65, 0.1, "84.5", epochs=100),
            "large": Numbers(1.2e-3, 0.75, 0.25, "86.6", clip=1.0),
            "huge": Numbers(1.2e-3, 0.75, 0.3, "87.4"),
        },
        "ViT-H: the authors accumulate two micro-batches",
        MAES | {"head_init": "dbot"},
    ),
    "colormae": Preset(  # vit-base-p16_8xb128-coslr-100e_in1k.py
        "ColorMAE",
        {"base": Numbers(2e-3, 0.65, 0.1, "83.8 (1600 epochs, best epoch)", epochs=100)},
        "ViT-L: not stated by the authors",
        MAES,
    ),
    "cmt_mae": Preset(
        "CMT-MAE (a default of ours: MILAN's)",
        {"base": Numbers(4e-4, 0.65, 0.1, "85.7 (whose recipe is not stated)", epochs=100)},
        "CMT-MAE's authors state no recipe: all numbers are MILAN's",
        MAES,
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
    tables = published.relative_position == "blocks" and not start.registers
    relative = "blocks" if tables else start.relative_position
    return replace(start, drop_path=published.drop_path, relative_position=relative)


def from_scratch(run: Pretrain) -> Pretrain:
    """The same run without pre-trained weights: one rate for all layers, none frozen, no LoRA: nothing is to be kept.

    The head is DeiT's: one that starts near zero, as beside pre-trained weights, would only hold the others back.
    """
    method = replace(run.method, head_init="deit") if isinstance(run.method, SupervisedConfig) else run.method
    optim = replace(run.optim, layer_decay=1.0, freeze_blocks=0, lora=Lora())
    return replace(run, init=None, method=method, optim=optim)


MIXING_NOTE = "partners in mixing are neighbours in the global batch; the authors mix in reverse order"
HOW = {"rescale": rescale, "notes": (MIXING_NOTE,), "trains": "classifier"}
FINETUNING = tuple(preset.family(f"finetune_{name}", "Fine-tuning", in1k, **HOW) for name, preset in PRESETS.items())


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
    if "colormae" in run.recipe:
        return "colormae"
    return run.method.kind if run.method.kind in PRESETS else "mae"
