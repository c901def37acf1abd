"""What every question to a network of a fine-tuned run shares: the network, images, and the file that scores go to.

Nothing is learned or chosen here. Classes are matched by name: the ids of a data set mean nothing outside it.
"""

import glob
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
import tyro

from pantomim.config import Pretrain, from_yaml, to_dict
from pantomim.core.files import check_out, replace_file
from pantomim.core.frozen import frozen
from pantomim.core.machine import Device
from pantomim.core.names import check_there
from pantomim.core.ranges import AtLeastOne, Positive
from pantomim.data.dataset import Contents, Dataset
from pantomim.data.layout import part_names
from pantomim.data.masks import Masks
from pantomim.data.sources import HELD_BACK, open_split, read_contents
from pantomim.engine.runtime import usable_device
from pantomim.evaluate import base
from pantomim.evaluate.features import check_images, collapse_warning
from pantomim.formats.native import CLASSIFIER, SEGMENTER, damaged, read_description

RUN_WIDE = ("run", "data", "out", "chunk", "device", "protocol")  # options that are no settings of a result
FROM_SCRATCH = "scratch"  # the folder, in that of a run, of the same training without pre-trained weights
MAKERS = {
    CLASSIFIER: "`pantomim finetune` makes a classifier from an encoder and labelled images.",
    SEGMENTER: "`pantomim segment` makes a segmenter from an encoder and images with masks.",
}


@dataclass(frozen=True)
class Trained:
    """The network of a run that was trained for a task, in evaluation mode."""

    folder: Path
    module: Any
    about: Mapping[str, Any]  # classifier.json, or segmenter.json
    device: torch.device

    kind: ClassVar[str]  # which pair of files of the run
    load: ClassVar[Any]  # from the folder
    by_class: ClassVar[dict[str, str]]  # what the description must have of every class, and what that is called
    told: ClassVar[tuple[str, ...]]  # what else; it stands in results, too
    more: ClassVar[tuple[str, ...]] = ()  # and what does not

    @classmethod
    def open(cls, run: str | Path, device: torch.device) -> Self:
        """The network of a run, by the run's folder or the weights in it."""
        folder, _ = find_head(run, (cls.kind,))
        module, about = cls.load(folder), read_description(folder, cls.kind)
        count, missing = about[cls.kind]["num_classes"], [name for name in (*cls.told, *cls.more) if name not in about]
        if missing or any(len(about.get(name, ())) != count for name in cls.by_class):
            called = " and ".join(cls.by_class.values())
            lacks = f"no {', '.join(missing or cls.told)}, or not the {called} of all {count} classes"
            raise damaged(folder / f"{cls.kind}.json", lacks)
        return cls(folder, module.to(device), about, device)

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the logits."""
        return tuple(self.about["classes"])

    def places(self, present: Sequence[str], where: str) -> dict[str, int]:
        """The place of each class by its name; refuses `present` ones that are not among them."""
        places = {name: place for place, name in enumerate(self.classes)}
        owner, ours = self.kind.capitalize(), ", ".join(self.classes[:10]) + " ..." * (len(self.classes) > 10)
        if len(places) < len(self.classes):
            raise ValueError(
                f"{owner}.classes must have different names; got {ours}. Rename those of the training, and train again."
            )
        if unknown := [name for name in present if name not in places]:
            raise ValueError(
                f"{owner}.classes must include those of the images; got {', '.join(unknown[:10])} in {where}, unknown "
                f"to it. It was trained on {ours}: rename or remove the others."
            )
        return places


def find_head(run: str | Path, kinds: Sequence[str] = (CLASSIFIER,)) -> tuple[Path, str]:
    """The folder of a fine-tuned run, given that or its weights, and the first of these pairs of files in it."""
    path = Path(run)
    folder, named = (path.parent, (path.stem,)) if path.suffix == ".safetensors" else (path, kinds)
    for kind in kinds:
        if kind in named and (folder / f"{kind}.json").is_file():
            return folder, kind
    field = f"{kinds[0].capitalize()}.run"
    rule = f"the folder of a fine-tuned run, or its {' or '.join(f'{kind}.safetensors' for kind in kinds)}"
    check_there(field, path, rule)
    there = ["another name"] if path.suffix == ".safetensors" else []
    there += [f"a {kind}" for kind in MAKERS if (folder / f"{kind}.json").is_file()]
    there += ["an encoder alone"] if (folder / "encoder.json").is_file() else ["none"]
    makers = " ".join(MAKERS[kind] for kind in kinds)
    raise ValueError(f"{field} must be {rule}; got {run}, which has {there[0]}. {makers}")


@frozen
class TaskEvaluation(ABC):
    """A question to the network of a fine-tuned run, with the options that all of them have."""

    run: str  # The folder of a fine-tuned run, or the weights in it
    data: str  # As for training, with labels or masks
    # FILE.json; by default in the folder eval of the run, where each evaluation has a file of its own
    out: Path | None = None
    # Of the data; without a test split, "test" is val, or the fifth that training leaves out
    split: Literal["test", "val", "train", "all"] = "test"
    test_images: AtLeastOne | None = None  # Use only this many images: a fixed draw, balanced over the classes
    scale: Positive | None = None  # The stored value that becomes 1; None: by the number type, 255 for 8-bit images
    device: Device = "auto"  # "auto" takes a GPU if there is one
    protocol: tyro.conf.Suppress[str] = ""

    network: ClassVar[type[Trained]]
    stem: ClassVar[str]  # what the file of the result is named after, before the data

    @property
    def against(self) -> str | None:
        """Another run that was scored on the same images: is the difference to it chance?"""
        return None

    @abstractmethod
    def score(self, trained: Any, dataset: Dataset, theirs: base.Scores | None) -> dict[str, Any]:
        """Scores under "trained", what else is to be written, and under "against" how they differ from `theirs`."""

    @abstractmethod
    def words(self, result: Mapping[str, Any]) -> list[str]:
        """The scores, for the headline."""

    @cached_property
    def source(self) -> tuple[Contents, Masks | None]:
        """What the data hold."""
        return read_contents(self.data), None

    @property
    def path(self) -> Path:
        """Of the result's file."""
        return self.out or self.path_of(self.run)

    def path_of(self, run: str) -> Path:
        """Of the file in the folder of a run."""
        name = f"{self.stem}-{self.source[0].name}{'' if self.split == 'test' else f'-{self.split}'}.json"
        return find_head(run, (self.network.kind,))[0] / "eval" / name

    def _check_unseen(self, contents: Contents) -> None:
        """Refuse the fixed fifth of a source without test images where the run trained on some of it."""
        file = find_head(self.run, (self.network.kind,))[0] / "config.yaml"
        if contents.splits or self.split != "test" or not file.is_file():
            return
        data = from_yaml(Pretrain, file).data
        if data.holdout < HELD_BACK and base.place_of(data.source) == base.place_of(self.data):
            raise ValueError(
                f"{type(self).__name__}.data must have images that training did not see; got {self.data}, of which "
                f"{self.run} held back {data.holdout:.0%} (data.holdout), and {HELD_BACK:.0%} are for tests. Score on "
                f"other images, or train with data.holdout {HELD_BACK:g}."
            )

    def to_file(self) -> tuple[Path, dict[str, Any]]:
        """Score, and write the result; a file about other images or settings is left alone (see `free_path`)."""
        begin, owner, kind = time.perf_counter(), type(self).__name__, self.network.kind
        trained = self.network.open(self.run, usable_device(owner, self.device))
        contents, masks = self.source
        split = part_names(contents.splits)["test"] if self.split == "test" else self.split
        whole, path = open_split(replace(contents, scale=self.scale), self.data, split), self.path
        whole = whole.labelled() if masks is None else whole
        key = whole.key() | ({} if masks is None else masks.key(whole.names))
        self._check_unseen(contents)
        check_out(f"{owner}.out", path, [".json"])
        settings = {name: value for name, value in to_dict(self).items() if name not in RUN_WIDE}
        base.refuse_other_scores(owner, self.out, settings, self.data, protocol=self.stem, **{kind: self.run})
        dataset = whole.part(self.test_images)
        about: dict[str, Any] = {"spec": self.data, "place": base.place_of(self.data), "test_split": dataset.split}
        about |= {"channels": dataset.channels, "scale": asdict(dataset.scale), "num_classes": len(trained.classes)}
        about |= {"image_size": list(trained.module.encoder.image_size), "key": key}
        check_images(trained.module.encoder, dataset)
        warning = collapse_warning(trained.module.encoder, dataset)
        scores = self.score(trained, dataset, None if self.against is None else self.scores_of(self.against, key))
        if self.against is not None:
            ours, other = (find_head(run, (kind,))[0].resolve() for run in (self.run, self.against))
            scores["against"] |= {kind: self.against, "from_scratch": other == ours / FROM_SCRATCH}
        broken = [asdict(image) for image in dataset.broken]
        result = {
            "protocol": self.stem,
            "protocol_version": base.PROTOCOL_VERSION,
            "dataset": dataset.name,
            "data": {**about, "num_test": len(dataset) - len(broken), "broken": broken},
            "labels_per_class": None,
            "settings": settings,
            kind: self.run,
            f"{kind}_sha256": trained.about["sha256"],
            **{name: trained.about[name] for name in trained.told},
            "chosen": trained.about.get("chosen"),
            **scores,
            "warnings": [] if warning is None else [warning],
            "wall_s": round(time.perf_counter() - begin, 2),
        }
        path = self.out or base.free_path(path, result)
        replace_file(path, (json.dumps(result, indent=2) + "\n").encode())
        return path, result

    def scores_of(self, other: str, key: Mapping[str, Any]) -> base.Scores:
        """What another run scored on the same images, which the key identifies."""
        path = self.path_of(other)
        found = [base.read_scored(file) for file in sorted(path.parent.glob(f"{glob.escape(path.stem)}*.json"))]
        drawn = [each for each in found if each.get("settings", {}).get("test_images") == self.test_images]
        result = next((each for each in drawn if each["data"].get("key") == key), None)
        if result is None:
            raise ValueError(
                f"{type(self).__name__}.against must be a run that was scored on the same images; got {other}, which "
                f"has {'other images in' if found else 'no'} {path}. Score it on {self.data} in the same way first."
            )
        return dict(result["trained"])

    def headline(self, result: dict[str, Any]) -> str:
        """The result in one line, and how it differs from another run's."""
        words = self.words(result)
        if other := result.get("against"):
            low, high = (f"{100 * end:+.1f}" for end in other["interval"])
            than = "the same training from scratch" if other.get("from_scratch") else other[self.network.kind]
            words.append(f"{100 * other['difference']:+.1f} points against {than} ({low} to {high})")
        return f"{result['protocol']} on {result['dataset']}: {', '.join(words)}{base.left_out(result)}"
