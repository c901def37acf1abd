"""What every protocol shares: an encoder, images, baselines beside it, and the file that the scores go to.

`evaluate(Linear(encoder="runs/a", data="mnist"))` gives what `pantomim evaluate linear` writes.
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
import tyro

from pantomim.config import to_dict
from pantomim.core.files import check_out, replace_file
from pantomim.core.frozen import frozen
from pantomim.core.intervals import half_of_share
from pantomim.core.machine import Device
from pantomim.core.names import check_there
from pantomim.core.ranges import AtLeastOne, Positive
from pantomim.core.reading import read_json
from pantomim.data.dataset import Dataset
from pantomim.data.stats import channel_stats
from pantomim.engine.runtime import usable_device
from pantomim.evaluate import features
from pantomim.evaluate.features import AnyEncoder, FeatureTable, extract, pixel_table
from pantomim.evaluate.parts import Labelled, MaskedParts, Tables, make_parts, open_labelled
from pantomim.formats import load_encoder
from pantomim.formats.files import hash_weights
from pantomim.formats.transform import Transform
from pantomim.formats.wrapped import resized_encoder

PROTOCOL_VERSION = 1
IMAGE_OPTIONS = ("images", "test_images", "scale", "image_size")
SHOWN = {"trained": "trained", "untrained": "random-init encoder", "pixels": "raw pixels"}
Contender = Literal["trained", "untrained", "pixels"]
Scores = dict[str, Any]
T = TypeVar("T")


class Memo(dict[Hashable, Any]):
    """Shared by evaluations to open data and extract features once; a key says all that its value depends on."""

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What is remembered under the key, else what `make` gives."""
        if key not in self:
            self[key] = make()
        return self[key]


@frozen
class Evaluation(ABC):
    """One protocol, with the options that all of them have; each adds its own and how it scores."""

    encoder: str  # A run folder, a file of weights, timm:NAME, open_clip:NAME:TAG, hf:NAME or clip:FILE
    # As for pre-training: for segmentation with masks, for label_free without anything, else with labels
    data: str
    # FILE.json; by default in the run folder, where each evaluation has a file of its own
    out: Path | None = None
    # Use only this many training images: the draw that pre-training with `data.images` makes
    images: AtLeastOne | None = None
    test_images: AtLeastOne | None = None  # Score only this many test images: a fixed draw, balanced over the classes
    scale: Positive | None = None  # The stored value that becomes 1; None: by the number type, 255 for 8-bit images
    # Height and width at which images are encoded, positions resampled; None: the encoder's own, and for segmentation
    # those of the images, with at most twice the encoder's own patches along the shorter side
    image_size: tuple[AtLeastOne, AtLeastOne] | None = None
    # Whom to score: the trained encoder, the same with random initial weights, raw pixels
    contenders: tuple[Contender, ...] = ("trained", "untrained", "pixels")
    seed: int = 0  # Of every random choice, the initial weights of the baseline among them
    chunk: AtLeastOne = 256  # Images that the encoder sees at once
    device: Device = "auto"  # "auto" takes a GPU if there is one
    protocol: tyro.conf.Suppress[str] = ""  # each protocol has one value: a field, so that files name it

    metric: ClassVar[tuple[str, str]] = ("top1", "top-1")  # the score that stands for the result, and what it is called
    version: ClassVar[int] = PROTOCOL_VERSION  # of the protocol: scores of two versions are not compared
    chosen_within: ClassVar[str | None] = None  # by what settings are chosen, where no images are held out for it
    chosen_by_hand: ClassVar[bool] = False  # whether the user chooses settings, by the score on held-out images

    def __post_init__(self) -> None:
        if not self.contenders or len(set(self.contenders)) < len(self.contenders):
            raise ValueError(f"Evaluation.contenders must name at least one, and each once; got {self.contenders}.")
        usable_device("Evaluation", self.device)

    @abstractmethod
    def run(self, bench: "Bench") -> dict[str, Scores]:
        """Scores of each contender, as shares."""

    def open(self, memo: Memo) -> Labelled | MaskedParts:
        """The images and what they are scored by."""
        asked = (self.data, self.images, self.test_images, self.scale)
        return memo.once(asked, lambda: open_labelled(*asked))

    @property
    def name(self) -> str:
        """Of the protocol, in results."""
        return self.protocol.replace("_", "-")

    @property
    def stem(self) -> str:
        """What the file of the result is named after, before the data."""
        return self.name

    @property
    def settings(self) -> dict[str, Any]:
        """The options that not every protocol has, or has another default of, and those of all that were changed."""
        below = type(self).__mro__[: type(self).__mro__.index(Evaluation)]
        own = {name for kind in below for name in kind.__annotations__} - {"protocol"}
        values, plain = to_dict(self), {name: getattr(Evaluation, name) for name in IMAGE_OPTIONS}
        changed = {name for name, value in plain.items() if values[name] != value}
        return {name: value for name, value in values.items() if name in own | changed}

    def to_file(self, memo: Memo | None = None) -> tuple[Path, dict[str, Any]]:
        """Score as `evaluate` does into `out` or the run's folder; beside it lies what the same command resumes."""
        folder = Path(self.encoder)
        check_there("Evaluation.encoder", folder)
        if self.out is None and not folder.is_dir():
            raise ValueError(
                f"Evaluation.out must be given for an encoder outside a run folder; got {self.encoder}. Name one."
            )
        check_out("Evaluation.out", self.out or folder / "eval" / "result.json", [".json"])
        who = {"protocol": self.name, "encoder": self.encoder, "seed": self.seed}
        refuse_other_scores("Evaluation", self.out, self.settings, self.data, **who)
        memo = Memo() if memo is None else memo
        beside = folder / "eval" / self.stem if self.out is None else self.out.with_suffix("")
        # Of all that decides the scores: another evaluation has another folder to work in.
        deciding = {name: value for name, value in to_dict(self).items() if name not in ("out", "contenders")}
        digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:8]
        work = beside.with_name(f"{beside.name}-{digest}.partial")
        result = evaluate(self, memo, work)
        path = self.out or free_path(folder / "eval" / f"{self.stem}-{result['dataset']}.json", result)
        replace_file(path, (json.dumps(result, indent=2) + "\n").encode())
        shutil.rmtree(work, ignore_errors=True)  # of no use any more, and as large as some heads
        return path, result

    def headline(self, result: dict[str, Any]) -> str:
        """The result in one line."""
        few = f", {result['labels_per_class']} labels a class" if result["labels_per_class"] else ""
        metric, called = self.metric
        scores = []
        for name in [name for name in SHOWN if name in result]:
            spread = f" ± {100 * result[name]['top1_std']:.1f}" if "top1_std" in result[name] else ""
            held_out = result[name].get("validation", {}).get(metric) if self.chosen_by_hand else None
            beside = "" if held_out is None else f" (held-out images {100 * held_out:.1f} %)"
            scores.append(f"{SHOWN[name]} {100 * result[name][metric]:.1f}{spread} %{beside}")
        protocol, dataset, count = result["protocol"], result["dataset"], result["data"]["num_test"]
        first = next(result[name] for name in SHOWN if name in result)
        margin = ""
        if metric == "top1" and "top1_std" not in first:  # a share of the images, of one training
            margin = f", each score ± {100 * half_of_share(first[metric], count):.1f} points (95 %)"
        images = f"; {count:,} test images{margin}"
        return f"{protocol} on {dataset}{few}, {called}: {', '.join(scores)}{images}{left_out(result)}"


def left_out(result: dict[str, Any]) -> str:
    """How many images were broken, and what is wrong with the network, for the end of a headline."""
    count = len(result["data"]["broken"])
    broken = f"; {count} broken image{'s' if count > 1 else ''} left out" if count else ""
    return broken + "".join(f".\nWarning: {warning}" for warning in result.get("warnings", ()))


@dataclass(frozen=True)
class Bench:
    """What a protocol works with."""

    evaluation: Evaluation
    opened: Labelled | MaskedParts
    train: Dataset
    test: Dataset
    reference: AnyEncoder  # at the size of the evaluation; raw pixels are cut and shrunk by it
    own_grid: tuple[int, int]  # its patches before it was resized
    encoders: dict[str, AnyEncoder]  # those among the contenders: frozen, in evaluation mode, on the device
    device: torch.device
    memo: Memo
    work: Path  # where what is trained keeps its steps; it need not exist

    @property
    def pixels(self) -> bool:
        """Whether raw pixels are a contender."""
        return "pixels" in self.evaluation.contenders

    def tables(self) -> Iterator[tuple[str, Tables]]:
        """The contenders, each with its features of all images, divided."""
        size, chunk, seed = self.reference.image_size, self.evaluation.chunk, self.evaluation.seed

        def divided(who: Hashable, make: Callable[[Dataset], FeatureTable]) -> Tables:
            asked, parts = self.evaluation, self.opened.parts
            key = (who, size, asked.data, asked.images, asked.test_images, asked.scale)
            tables = self.memo.once(key, lambda: {part: make(dataset) for part, dataset in parts.items()})
            return make_parts(tables["train"], tables.get("val"), tables["test"], seed=seed)

        for name, encoder in self.encoders.items():
            who = hash_weights(encoder.state_dict()), Transform.of(encoder), str(getattr(encoder, "config", ""))
            yield name, divided(who, partial(extract, encoder, batch_size=chunk))
        if self.pixels:
            stats = channel_stats(self.train)
            yield "pixels", divided("pixels", lambda dataset: pixel_table(dataset, size, stats))


def evaluate(evaluation: Evaluation, memo: Memo | None = None, work: Path | None = None) -> dict[str, Any]:
    """Score the encoder and its baselines; what is trained keeps its steps in `work`, if given, and is resumed there.

    Returns: protocol, data, seed and hash of the encoder; for each contender scores as shares: `top1` of the class
        token or the mean of patches, whichever is better on held-out training images, and more.
    """
    begin = time.perf_counter()
    memo = Memo() if memo is None else memo
    loaded = load_encoder(evaluation.encoder)
    opened = evaluation.open(memo)
    train, test = opened.parts["train"], opened.parts["test"]
    features.check_images(loaded, train)
    device = usable_device("Evaluation", evaluation.device)
    size = evaluation.image_size or opened.size_for(loaded)
    own_grid, reference = loaded.grid, resized_encoder(loaded, size).to(device)
    warning = features.collapse_warning(reference, train)
    encoders = {"trained": reference} if "trained" in evaluation.contenders else {}
    if "untrained" in evaluation.contenders:
        encoders["untrained"] = resized_encoder(features.random_init_encoder(loaded, evaluation.seed), size).to(device)
    before = {name: hash_weights(encoder.state_dict()) for name, encoder in encoders.items()}
    with tempfile.TemporaryDirectory() if work is None else nullcontext(work) as folder:
        bench = Bench(evaluation, opened, train, test, reference, own_grid, encoders, device, memo, Path(folder))
        scores = evaluation.run(bench)
    for name, encoder in encoders.items():
        assert not encoder.training, "a frozen encoder must stay in evaluation mode"
        assert hash_weights(encoder.state_dict()) == before[name], "a frozen encoder has changed"
    healthy = {part: len(dataset) - len(dataset.broken) for part, dataset in opened.parts.items()}
    fifth = "a fifth of train" if getattr(evaluation, "hold_out", True) else 0
    return {
        "protocol": evaluation.name,
        "protocol_version": evaluation.version,
        "dataset": train.name,
        "data": {
            "spec": evaluation.data,
            "place": place_of(evaluation.data),
            "num_train": healthy["train"],
            "num_val": evaluation.chosen_within or healthy.get("val", fifth),
            "num_test": healthy["test"],
            "test_split": test.split,
            "channels": train.channels,
            "scale": asdict(train.scale),
            "key": opened.key(),
            **opened.about(reference),
            "interpolation": Transform.of(reference).interpolation,
            "broken": [
                {"split": dataset.split, "name": broken.name, "reason": broken.reason}
                for dataset in opened.parts.values()
                for broken in dataset.broken
            ],
        },
        "labels_per_class": getattr(evaluation, "labels_per_class", None),  # beside the settings: readers know it there
        "settings": evaluation.settings,
        "seed": evaluation.seed,
        "encoder": evaluation.encoder,
        "encoder_sha256": hash_weights(loaded.state_dict()),
        **scores,
        "warnings": [] if warning is None else [warning],
        "wall_s": round(time.perf_counter() - begin, 2),
    }


class ScoresError(ValueError):
    """A file of scores that cannot be read; the message says what to do."""


def read_scored(path: Path) -> dict[str, Any]:
    """A result that was written; of a file of another kind what is there. Raises `ScoresError` if it is damaged."""
    advice = "Remove it, and score again."
    try:
        found = {"data": {}, "settings": {}, **read_json(path, dict[str, Any], advice)}
    except ValueError as error:
        raise ScoresError(str(error)) from error
    if not isinstance(found["data"], dict) or not isinstance(found["settings"], dict):
        raise ScoresError(f"{path} must hold data and settings by name; got other values. {advice}")
    return found


def free_path(path: Path, result: Mapping[str, Any]) -> Path:
    """Where a result is written: the path, unless it holds another evaluation; then the name has a hash of this one.

    Evaluations are the same if their data lie in the same place and hold the same images, and all settings are equal:
    the later takes the place of the earlier. A comparison with another run may be added. Nothing else is overwritten.
    """
    if not path.exists():
        return path
    alone = _asked({**result, "against": None, "settings": {**result["settings"], "against": None}})
    asked = _asked(result)
    with contextlib.suppress(ValueError):  # a damaged one is left alone, too
        if _asked(read_scored(path)) in (asked, alone):
            return path
    return path.with_name(f"{path.stem}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}{path.suffix}")


def refuse_other_scores(owner: str, out: Path | None, settings: Mapping[str, Any], data: str, **who: Any) -> None:
    """Refuse a named file that holds the scores of others, on other data or by other settings; before the work."""
    if out is None or not out.exists():
        return
    found = read_scored(out)
    there = {**found, "data": found["data"].get("place"), "settings": found["settings"] | {"against": None}}
    asked = {**who, "data": place_of(data), "settings": json.loads(json.dumps({**settings, "against": None}))}
    if different := [name for name, value in asked.items() if there.get(name) != value]:
        raise ValueError(
            f"{owner}.out must be a new file, or one with scores of the same kind; got {out}, which has another "
            f"{', '.join(different)}. Name another file, or remove it."
        )


def _asked(result: Mapping[str, Any]) -> str:
    """What was scored, on what and how; the weights and the scores aside."""
    data, in_key = result.get("data", {}), ("masks", "ignore", "reduce_zero")  # there as what they turned out to be
    settings = {name: value for name, value in result.get("settings", {}).items() if name not in in_key}
    if isinstance(other := result.get("against"), dict) and other.get("from_scratch"):
        settings["against"] = "scratch"  # which lies in the run folder, wherever that is now
    of = [data.get(name) for name in ("place", "key", "test_split")], [name for name in SHOWN if name in result]
    how = {data.get("interpolation", "bicubic")} - {"bicubic"}  # which is not recorded in earlier ones
    return json.dumps([*of, result.get("protocol"), settings, result.get("seed"), *how], sort_keys=True)


def place_of(spec: str) -> str:
    """Where data lie, however they were named."""
    path = Path(spec).expanduser()
    return str(path.resolve()) if path.exists() else spec
