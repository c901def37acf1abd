"""What the page of a run of segmentation shows of its segmenter: mean IoU, each class, pictures."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pantomim.report.classification import Scored
from pantomim.report.html import percent


@dataclass(frozen=True)
class Segmented(Scored):
    """One file eval/segment-*.json."""

    metric = "miou"
    called = "mean IoU"
    kind = "segmenter"

    @property
    def bars(self) -> list[tuple[str, float]]:
        """Mean IoU, and what it is to be compared with."""
        scratch = [] if self.from_scratch is None else [("From scratch", self.from_scratch)]
        return [
            ("Mean IoU", self.scores["miou"]),
            *scratch,
            ("One class everywhere", self.values["most_frequent"]["miou"]),
        ]

    @property
    def error(self) -> str:
        """The standard error of the mean IoU."""
        return f" ± {100 * self.scores['miou_error']:.1f}"

    @property
    def classes(self) -> list[tuple[str, float, str]]:
        """Name, IoU and share of the pixels, the lowest first."""
        shares = self.scores["labelled"]
        found = [(name, iou, percent(shares[name])) for name, iou in self.scores["iou"].items()]
        return sorted(found, key=lambda entry: entry[1])


def read_segmented(evaluations: Mapping[str, Mapping[str, Any]]) -> list[Segmented]:
    """The results of a segmenter in a run folder."""
    return [Segmented(stem, values) for stem, values in evaluations.items() if "most_frequent" in values]
