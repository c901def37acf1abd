"""`pantomim evaluate`: one protocol for the trained encoder, the same encoder untrained, and raw pixels."""

import json
import math
import time
from collections.abc import Callable, Hashable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor

from pantomim.core.files import replace_file
from pantomim.core.frozen import frozen
from pantomim.data.dataset import Dataset
from pantomim.data.sources import open_source, splits
from pantomim.data.stats import Stats, channel_stats
from pantomim.engine.runtime import check_device
from pantomim.evaluate.attentive import AttentiveProbe, Read, attentive, read_encoder
from pantomim.evaluate.features import (
    FeatureTable,
    check_channels,
    extract,
    has_class_token,
    pixel_size,
    pixel_table,
    pixel_vector,
    views,
)
from pantomim.evaluate.few_labels import few_labels
from pantomim.evaluate.knn import knn
from pantomim.evaluate.linear import LinearProbe, linear
from pantomim.evaluate.linear_mae import Extractor, MAEProbe, linear_mae
from pantomim.evaluate.memo import Memo
from pantomim.evaluate.out import check_out
from pantomim.evaluate.parts import known_classes, make_parts, missing_labels, part_names, renumber
from pantomim.evaluate.patches import (
    MaskedParts,
    PatchExtractor,
    Pictures,
    open_masked_parts,
    pixel_patches,
    resized_encoder,
)
from pantomim.evaluate.segmentation import PatchProbe, segmentation
from pantomim.formats import load_encoder
from pantomim.formats.files import hash_weights
from pantomim.formats.wrapped import WrappedEncoder
from pantomim.nn.vit import Encoder

PROTOCOL_VERSION = 1
NO_CLASS = 255  # in masks, unless --ignore says otherwise
SHOWN = {"trained": "trained", "untrained": "untrained twin", "pixels": "raw pixels"}
Contender = Literal["trained", "untrained", "pixels"]


@frozen
class Evaluate:
    """What to score, on what, and how.

    Args:
        protocol: Nearest neighbours, or a linear classifier on frozen features of images, or of patches (segmentation),
            or one query that reads all tokens (attentive, CAE's).
        encoder: A run folder, a file of weights, timm:NAME, open_clip:NAME:TAG, hf:NAME or clip:FILE.
        data: As for pre-training, with labels; for segmentation, with masks.
        out: FILE.json; by default eval/PROTOCOL-DATA.json in the run folder.
        training: Of the linear classifier: on cached features with many learning rates, or as MAE's authors do it.
        images: Use only this many training images: the draw that `pretrain --data.images` makes.
        test_images: Score only this many test images: a fixed draw, balanced over the classes.
        contenders: Whom to score: the trained encoder, its untrained twin, raw pixels.
        labels_per_class: Learn from so few labels a class (linear only); the score is a mean over draws.
        draws: Of the few labels.
        seed: Of every random choice, the untrained twin's weights among them.
        batch_size: Images that the encoder sees at once.
        device: "auto" takes a GPU if there is one.
        probe: How the cached probe is trained.
        mae: How the authors' probe is trained.
        masks: Which masks (segmentation only): a folder beside the images, or an array of the .npz; None: the only one.
        ignore: The value in masks of pixels that have no class.
        image_size: Height and width at which patches are encoded and scored (segmentation only); None: those of the
            images, with at most twice the patches of the encoder's own size along the shorter side.
        patches: How the classifier of patches is trained.
        attentive: How the attentive probe is trained.
        batch_statistics: Attentive only: normalise test images by the batch that they are in, as CAE's authors' code
            does, rather than by running statistics; a score then depends on which images share a batch.
    """

    protocol: Annotated[Literal["knn", "linear", "attentive", "segmentation"], tyro.conf.Positional]
    encoder: str
    data: str
    out: Path | None = None
    training: Annotated[Literal["cached", "mae"], tyro.conf.arg(name="protocol")] = "cached"
    images: int | None = None
    test_images: int | None = None
    contenders: tuple[Contender, ...] = ("trained", "untrained", "pixels")
    labels_per_class: int | None = None
    draws: int = 5
    seed: int = 0
    batch_size: int = 256
    device: Literal["auto", "cpu", "cuda"] = "auto"
    probe: LinearProbe = LinearProbe()
    mae: MAEProbe = MAEProbe()
    masks: str | None = None
    ignore: int = NO_CLASS
    image_size: tuple[int, int] | None = None
    patches: PatchProbe = PatchProbe()
    attentive: AttentiveProbe = AttentiveProbe()
    batch_statistics: bool = False

    def __post_init__(self) -> None:
        problems = [
            f"Evaluate.{name} must be at least 1; got {value}."
            for name, value in [
                ("labels_per_class", 1 if self.labels_per_class is None else self.labels_per_class),
                ("draws", self.draws),
                ("images", 1 if self.images is None else self.images),
                ("test_images", 1 if self.test_images is None else self.test_images),
                ("batch_size", self.batch_size),
            ]
            if value < 1
        ]
        if self.protocol != "linear" and self.training == "mae":
            problems.append(
                f"Evaluate.training (--protocol) must be 'cached' for {self.protocol}; got 'mae'. Choose linear."
            )
        if self.labels_per_class is not None and (self.protocol != "linear" or self.training == "mae"):
            problems.append(
                "Evaluate.labels_per_class must be left out but for linear on cached features; got "
                f"{self.labels_per_class} with {self.name}. Choose linear without --protocol mae."
            )
        if self.protocol != "segmentation":
            problems += [
                f"Evaluate.{name} must be left out but for segmentation; got {value} with {self.name}."
                for name, value, default in [
                    ("masks", self.masks, None),
                    ("ignore", self.ignore, NO_CLASS),
                    ("image_size", self.image_size, None),
                ]
                if value != default
            ]
        if self.batch_statistics and self.protocol != "attentive":
            problems.append(
                f"Evaluate.batch_statistics must be left out but for attentive; got it with {self.protocol}. No other "
                f"protocol's score depends on which images share a batch."
            )
        if not self.contenders or len(set(self.contenders)) < len(self.contenders):
            problems.append(f"Evaluate.contenders must name at least one, and each once; got {self.contenders}.")
        if problems:
            raise ValueError(" ".join(problems))
        check_device("Evaluate", self.device)

    @property
    def name(self) -> str:
        """Of the protocol, for files and tables."""
        if self.batch_statistics:
            return "attentive-batch-statistics"
        return "linear-mae" if self.training == "mae" else self.protocol


def evaluate(config: Evaluate, memo: Memo | None = None) -> dict[str, Any]:
    """Score the encoder, its untrained twin and raw pixels; writes nothing.

    Args:
        config: What to score, on what, and how.
        memo: Shared by several evaluations: data are then opened and features extracted once for all of them.

    Returns: the protocol, data, seed and hash of the encoder, and for each of `contenders` the scores as shares:
        `top1` (of the class token or the mean of patches, whichever is better on held-out training images),
        `top1_per_class`, `top1_class`, `top1_mean` and more; for segmentation see `segmentation.segmentation`. Counts
        are of the images used; `broken` names the others.

    Raises:
        ValueError: if the data have no labels, other channels than the encoder, or classes that train does not have.
    """
    begin = time.perf_counter()
    memo = Memo() if memo is None else memo
    encoder = load_encoder(config.encoder)
    masked = _masked(config, memo)
    data = masked.parts if masked else memo.once(_used_images(config), lambda: _used_parts(config))
    check_channels(encoder, data["train"])
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(auto if config.device == "auto" else config.device)
    encoders: dict[str, Encoder | WrappedEncoder] = {}
    if "trained" in config.contenders:
        encoders["trained"] = encoder
    if "untrained" in config.contenders:
        encoders["untrained"] = untrained_twin(encoder, config.seed)
    encoders = {name: contender.to(device) for name, contender in encoders.items()}
    # Where pixels do not compete, nobody asks for their mean and deviation.
    by_vectors = not masked and config.protocol != "attentive"
    stats = channel_stats(data["train"]) if "pixels" in config.contenders and by_vectors else None
    about: dict[str, Any]
    if masked:
        size, batch_size = config.image_size, config.batch_size
        pictures = Pictures.of(masked, encoder, image_size=size, batch_size=batch_size, device=device)
        scores, about = _on_patches(config, encoders, pictures), pictures.about()
    elif config.protocol == "attentive":
        scores = _by_attention(config, encoders, encoder, data, device)
    elif config.training == "mae":
        scores = _by_mae_protocol(config, encoders, encoder.image_size, data, stats, device)
    else:
        scores = _on_cached_features(config, encoders, encoder.image_size, data, stats, device, memo)
    train, test = data["train"], data["test"]
    if not masked:
        about = {
            "num_classes": len(known_classes(_labels(train))),
            "image_size": list(encoder.image_size),
            "pixels_image_size": list(pixel_size(encoder.image_size, train.channels)),
        }
    return {
        "protocol": config.name,
        "protocol_version": PROTOCOL_VERSION,
        "dataset": train.name,
        "data": {
            "spec": config.data,
            "num_train": len(train) - len(train.broken),
            "num_val": len(data["val"]) - len(data["val"].broken) if "val" in data else "a fifth of train",
            "num_test": len(test) - len(test.broken),
            "test_split": test.split,
            "channels": train.channels,
            "scale": asdict(train.scale),
            **about,
            "broken": [
                {"split": part.split, "name": broken.name, "reason": broken.reason}
                for part in data.values()
                for broken in part.broken
            ],
        },
        "labels_per_class": config.labels_per_class,
        "settings": _settings(config),
        "seed": config.seed,
        "encoder": config.encoder,
        "encoder_sha256": hash_weights(encoder.state_dict()),
        **scores,
        "wall_s": round(time.perf_counter() - begin, 2),
    }


def evaluate_to_file(config: Evaluate, memo: Memo | None = None) -> tuple[Path, dict[str, Any]]:
    """Score and write the result to `out`; without it the result goes into the run folder of the encoder.

    Args:
        config: What to score, on what, and how.
        memo: As for `evaluate`.

    Raises:
        ValueError: also if there is neither `out` nor a run folder, or nothing can be written there.
    """
    folder = Path(config.encoder)
    if config.out is None and not folder.is_dir():
        raise ValueError(
            f"Evaluate.out must be given for an encoder outside a run folder; got {config.encoder}. "
            f"Add --out FILE.json."
        )
    check_out("Evaluate.out", folder / "eval" / "result.json" if config.out is None else config.out, [".json"])
    result = evaluate(config, memo)
    few = "" if config.labels_per_class is None else f"-{config.labels_per_class}"
    path = config.out or folder / "eval" / f"{config.name}{few}-{result['dataset']}.json"
    replace_file(path, (json.dumps(result, indent=2) + "\n").encode())
    return path, result


def headline(result: dict[str, Any]) -> str:
    """The result in one line."""
    few = f", {result['labels_per_class']} labels a class" if result["labels_per_class"] else ""
    metric, called = ("miou", "mean IoU") if result["protocol"] == "segmentation" else ("top1", "top-1")
    scores = []
    for name, shown in SHOWN.items():
        if name not in result:
            continue
        spread = f" ± {100 * result[name]['top1_std']:.1f}" if "top1_std" in result[name] else ""
        scores.append(f"{shown} {100 * result[name][metric]:.1f}{spread} %")
    num_broken = len(result["data"]["broken"])
    left_out = f"; {num_broken} broken image{'s' if num_broken > 1 else ''} left out" if num_broken else ""
    return f"{result['protocol']} on {result['dataset']}{few}, {called}: {', '.join(scores)}{left_out}"


def open_parts(spec: str) -> dict[str, Dataset]:
    """The labelled splits of a source, as `part_names` divides them.

    Raises:
        ValueError: if labels are missing or a class of val or test is unknown to train.
    """
    data = {part: open_source(spec, split) for part, split in part_names(splits(spec)).items()}
    for part, dataset in data.items():
        if dataset.labels is None:
            raise ValueError(missing_labels(f"{spec} ({part})"))
    classes = known_classes(_labels(data["train"]))
    for part, dataset in data.items():
        renumber(_labels(dataset), classes, part)
    return data


def _used_images(config: Evaluate) -> tuple[str, int | None, int | None]:
    """What decides which images are used."""
    return config.data, config.images, config.test_images


def _used_parts(config: Evaluate) -> dict[str, Dataset]:
    """The splits, train and test cut down to the number of images that is asked for."""
    data = open_parts(config.data)
    if config.images is not None:
        data["train"] = data["train"].drawn(config.images)
    if config.test_images is not None:
        data["test"] = data["test"].drawn(config.test_images)
    return data


def untrained_twin(encoder: Encoder | WrappedEncoder, seed: int) -> Encoder | WrappedEncoder:
    """The same encoder with freshly drawn weights; torch's own random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(encoder, WrappedEncoder):
            return encoder.untrained().eval()
        return encoder.config.build().eval()


def _on_cached_features(
    config: Evaluate,
    encoders: dict[str, Encoder | WrappedEncoder],
    image_size: tuple[int, int],
    data: dict[str, Dataset],
    stats: Stats | None,
    device: torch.device,
    memo: Memo,
) -> dict[str, dict[str, Any]]:
    def score(tables: dict[str, FeatureTable]) -> dict[str, Any]:
        parts = make_parts(tables["train"], tables.get("val"), tables["test"], seed=config.seed)
        if config.protocol == "knn":
            return knn(parts)
        if config.labels_per_class is not None:
            return few_labels(parts, config.labels_per_class, num_draws=config.draws, seed=config.seed)
        return linear(parts, config.probe, seed=config.seed, device=device)

    def tables(who: Hashable, make: Callable[[Dataset], FeatureTable]) -> dict[str, FeatureTable]:
        return memo.once((who, _used_images(config)), lambda: {part: make(images) for part, images in data.items()})

    scores = {}
    for name, encoder in encoders.items():
        make = partial(extract, encoder, batch_size=config.batch_size)
        scores[name] = score(tables(hash_weights(encoder.state_dict()), make))
    if stats is not None:
        scores["pixels"] = score(tables(("pixels", image_size), lambda images: pixel_table(images, image_size, stats)))
    return scores


def _by_mae_protocol(
    config: Evaluate,
    encoders: dict[str, Encoder | WrappedEncoder],
    image_size: tuple[int, int],
    data: dict[str, Dataset],
    stats: Stats | None,
    device: torch.device,
) -> dict[str, dict[str, Any]]:
    def of(encoder: Encoder | WrappedEncoder) -> Extractor:
        view = "class" if has_class_token(encoder) else "mean"
        return lambda images: views(encoder, encoder(images))[view]

    size = pixel_size(image_size, data["train"].channels)

    def pixels(images: Tensor, stats: Stats) -> Tensor:
        smaller = torch.nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
        return pixel_vector(images if size == image_size else smaller, stats)

    before = {name: hash_weights(encoder.state_dict()) for name, encoder in encoders.items()}
    extractors = {name: of(encoder) for name, encoder in encoders.items()}
    if stats is not None:
        extractors["pixels"] = partial(pixels, stats=stats)
    scores = linear_mae(
        extractors,
        data["train"],
        data["test"],
        image_size,
        config.mae,
        seed=config.seed,
        device=device,
    )
    for name, encoder in encoders.items():
        assert not encoder.training, "a frozen encoder must stay in evaluation mode"
        assert hash_weights(encoder.state_dict()) == before[name], "a frozen encoder has changed"
    return scores


def _by_attention(
    config: Evaluate,
    encoders: dict[str, Encoder | WrappedEncoder],
    encoder: Encoder | WrappedEncoder,
    data: dict[str, Dataset],
    device: torch.device,
) -> dict[str, dict[str, Any]]:
    before = {name: hash_weights(contender.state_dict()) for name, contender in encoders.items()}
    readers = {name: read_encoder(contender, config.attentive.heads) for name, contender in encoders.items()}
    if "pixels" in config.contenders:
        heads = read_encoder(encoder, config.attentive.heads).heads
        width = pixel_patches(torch.zeros(1, encoder.in_chans, *encoder.image_size), encoder.grid).shape[2]
        readers["pixels"] = Read(partial(pixel_patches, grid=encoder.grid), math.gcd(heads, width))
    scores = attentive(
        readers,
        data["train"],
        data["test"],
        encoder.image_size,
        config.attentive,
        test_batch_statistics=config.batch_statistics,
        seed=config.seed,
        device=device,
    )
    for name, contender in encoders.items():
        assert not contender.training, "a frozen encoder must stay in evaluation mode"
        assert hash_weights(contender.state_dict()) == before[name], "a frozen encoder has changed"
    return scores


def _masked(config: Evaluate, memo: Memo) -> MaskedParts | None:
    """Images with masks, where the protocol is about masks."""
    if config.protocol != "segmentation":
        return None
    return memo.once(
        (*_used_images(config), config.masks, config.ignore),
        lambda: open_masked_parts(
            config.data, config.masks, config.ignore, images=config.images, test_images=config.test_images
        ),
    )


def _on_patches(
    config: Evaluate, encoders: dict[str, Encoder | WrappedEncoder], pictures: Pictures
) -> dict[str, dict[str, Any]]:
    def of(encoder: Encoder | WrappedEncoder) -> PatchExtractor:
        return lambda images: encoder(images).patches

    resized = {name: resized_encoder(encoder, pictures.image_size) for name, encoder in encoders.items()}
    before = {name: hash_weights(encoder.state_dict()) for name, encoder in resized.items()}
    extractors = {name: of(encoder) for name, encoder in resized.items()}
    if "pixels" in config.contenders:
        extractors["pixels"] = partial(pixel_patches, grid=pictures.grid)
    scores = segmentation(extractors, pictures, config.patches, seed=config.seed)
    for name, encoder in resized.items():
        assert hash_weights(encoder.state_dict()) == before[name], "a frozen encoder has changed"
    return scores


def _settings(config: Evaluate) -> dict[str, Any]:
    if config.protocol == "segmentation":
        return {**asdict(config.patches), "lrs": list(config.patches.lrs)}
    if config.protocol == "attentive":
        return {**asdict(config.attentive), "batch_statistics": config.batch_statistics}
    if config.training == "mae":
        return asdict(config.mae)
    if config.labels_per_class is not None:
        return {"draws": config.draws}
    return {**asdict(config.probe), "lrs": list(config.probe.lrs)} if config.protocol == "linear" else {}


def _labels(dataset: Dataset) -> Tensor:
    assert dataset.labels is not None
    return torch.from_numpy(dataset.labels)
