"""What the page of a run for a task shows of its network: scores, each class, what is confused, hard images."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pantomim.report.html import percent

MATRIX_CLASSES = 20  # with more, a matrix cannot be read, and the most frequent confusions are listed
NUM_ROWS = 12  # of tables
NUM_LOWEST = 24  # classes that are shown at once
DEEPEST = 60  # percent of colour in a cell of the matrix, so that its number stays readable
INCREASE = "relative_error_increase"
Table = list[list[str]]


@dataclass(frozen=True)
class Scored(ABC):
    """One file of eval/ about the network of a fine-tuned run."""

    stem: str
    values: Mapping[str, Any]

    kind: ClassVar[str]
    mark: ClassVar[str]  # a score that no other file has
    metric: ClassVar[str]
    called: ClassVar[str]
    heading: ClassVar[str]  # of the section about classes

    @property
    @abstractmethod
    def bars(self) -> list[tuple[str, float]]:
        """The scores that stand on their own, the main one first."""

    @property
    def data(self) -> str:
        """Of what; another part than test is named."""
        split = self.values["data"]["test_split"]
        return self.values["dataset"] + ("" if split == "test" else f" ({split})")

    @property
    def scores(self) -> Mapping[str, Any]:
        """Of the network."""
        return self.values["trained"]

    @property
    def from_scratch(self) -> float | None:
        """What the same training scores without pre-trained weights, where that is known."""
        other = self.values.get("against") or {}
        return other[self.metric] if other.get("from_scratch") else None

    @property
    def against(self) -> str:
        """How it differs from another run, in a sentence; empty where none was named."""
        if (other := self.values.get("against")) is None:
            return ""
        apart, low, high = map(points, (other["difference"], *other["interval"]))
        interval = f"paired 95\N{NO-BREAK SPACE}% interval {low} to {high}"
        verdict = "can be chance" if other["interval"][0] <= 0 <= other["interval"][1] else "is beyond chance"
        if self.from_scratch is not None:
            return (
                f"Pre-training changes {self.called} by {apart} points, which {verdict} ({interval}): the same "
                f"training from scratch, in {other[self.kind]}, reaches {percent(self.from_scratch)}."
            )
        only = ""
        if "only_this" in other:
            only = f"{other['only_this']} images are right here alone, {other['only_other']} there alone. "
        return (
            f"Against {other[self.kind]} on the same images: {apart} points of {self.called} ({interval}). {only}"
            f"It {verdict}."
        )

    def lowest_first(self, shares: Mapping[str, float], notes: Mapping[str, str]) -> list[tuple[str, float, str]]:
        """Classes with their shares and notes."""
        return sorted(((name, share, notes[name]) for name, share in shares.items()), key=lambda entry: entry[1])


@dataclass(frozen=True)
class Classified(Scored):
    """One file eval/finetune-*.json."""

    kind = "classifier"
    mark = "hits"
    metric = "top1"
    called = "top-1"
    heading = "Where it errs"
    error = ""

    @property
    def bars(self) -> list[tuple[str, float]]:
        """The scores that stand on their own."""
        names = {"top1": "Top-1", "top5": "Top-5", "top1_per_class": "Mean over classes"}
        found = [(words, self.scores[name]) for name, words in names.items() if name in self.scores]
        return found if self.from_scratch is None else [*found, ("Top-1 from scratch", self.from_scratch)]

    @property
    def caption(self) -> str:
        """What is to be known of the bars, and scores that have none."""
        low, high = self.scores["top1_interval"]
        return (
            f"; the bars start at zero. 95 % interval of top-1 (Wilson), for the chance in the choice of these images: "
            f"{100 * low:.1f} to {percent(high)}. Macro F1 {percent(self.scores['f1'])}, mean negative log-likelihood "
            f"{self.scores['nll']:.3f}."
        )

    @property
    def classes(self) -> list[tuple[str, float, str]]:
        """Name, accuracy and number of images, the lowest first."""
        counts = {name: f"of {sum(row.values())}" for name, row in self.scores["confusion"].items()}
        return self.lowest_first(self.scores["by_class"], counts)

    @property
    def names(self) -> list[str]:
        """Classes that occur or are predicted; all of them in the order of the true ones."""
        confusion = self.scores["confusion"]
        return list(dict.fromkeys([*confusion, *(name for row in confusion.values() for name in row)]))

    @property
    def matrix(self) -> list[tuple[str, list[tuple[int, float]]]] | None:
        """For each true class the number of predictions of each class, and how deep its colour is, in percent."""
        if len(self.names) > MATRIX_CLASSES:
            return None
        return [
            (true, [(row.get(name, 0), DEEPEST * row.get(name, 0) / sum(row.values())) for name in self.names])
            for true, row in self.scores["confusion"].items()
        ]

    @property
    def pairs(self) -> Table:
        """The most frequent confusions: true class, prediction, images, share of the true class."""
        confusion = self.scores["confusion"].items()
        wrong = [
            (count, count / sum(row.values()), true, name)
            for true, row in confusion
            for name, count in row.items()
            if name != true
        ]
        wrong.sort(key=lambda entry: entry[:2], reverse=True)
        return [[true, name, str(count), percent(share, 0)] for count, share, true, name in wrong[:NUM_ROWS]]

    @property
    def hardest(self) -> Table:
        """The images of the highest loss, where there are no pictures of them."""
        return [
            [hard["name"], hard["true"], hard["predicted"], percent(hard["probability"], 0)]
            for hard in self.scores["hardest"][:NUM_ROWS]
        ]


@dataclass(frozen=True)
class Segmented(Scored):
    """One file eval/segment-*.json."""

    kind = "segmenter"
    mark = "counts"
    metric = "miou"
    called = "mean IoU"
    heading = "IoU, class by class"

    @property
    def bars(self) -> list[tuple[str, float]]:
        """Mean IoU, and what it is to be compared with."""
        scratch = [] if self.from_scratch is None else [("From scratch", self.from_scratch)]
        baseline = self.values["most_frequent"]["miou"]
        return [("Mean IoU", self.scores["miou"]), *scratch, ("One class everywhere", baseline)]

    @property
    def error(self) -> str:
        """The standard error of the mean IoU."""
        return f" ± {100 * self.scores['miou_error']:.1f}"

    @property
    def caption(self) -> str:
        """What is to be known of the bars, and scores that have none."""
        return (
            f", at the size of their masks; the bars start at zero. ±: standard error, for the chance in the choice of "
            f"these images. The last bar: every pixel is “{self.values['most_frequent']['class']}”, the most frequent "
            f"class. Mean accuracy of classes {percent(self.scores['mean_accuracy'])}, pixel accuracy "
            f"{percent(self.scores['pixel_accuracy'])}."
        )

    @property
    def classes(self) -> list[tuple[str, float, str]]:
        """Name, IoU and share of the pixels, the lowest first."""
        return self.lowest_first(self.scores["iou"], {k: percent(v) for k, v in self.scores["labelled"].items()})


def read_scored(evaluations: Mapping[str, Mapping[str, Any]]) -> list[Scored]:
    """The results of the network in a run folder."""
    kinds, found = (Classified, Segmented), evaluations.items()
    return [kind(stem, values) for stem, values in found for kind in kinds if kind.mark in values.get("trained", ())]


def read_robustness(evaluations: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Table, str]]:
    """Of each file eval/robustness-*.json the data; errors by corruption and how much they grow; ImageNet's sets."""
    for values in evaluations.values():
        if values.get("protocol") != "robustness":
            continue
        scores = values["trained"]
        rows = [
            [kind, *map(percent, row["errors"]), "–" if (more := row[INCREASE]) is None else f"{points(more)} %"]
            for kind, row in scores["own_corruptions"].items()
        ]
        shifted = ", ".join(f"{name} {percent(share)}" for name, share in scores["shifted"].items())
        yield values["dataset"], rows, shifted


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")
