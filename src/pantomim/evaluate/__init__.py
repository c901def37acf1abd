"""What a frozen encoder is worth: one protocol a file, scored beside a random-init encoder and raw pixels.

And what a network is worth that was trained for a task, which is scored alone.
"""

from pathlib import Path
from typing import Any

from pantomim.config import Pretrain
from pantomim.core.names import one_of
from pantomim.evaluate.attentive import Attentive
from pantomim.evaluate.base import Evaluation
from pantomim.evaluate.base import Memo as Memo
from pantomim.evaluate.base import evaluate as evaluate
from pantomim.evaluate.classification import Classification
from pantomim.evaluate.few_labels import FewLabels
from pantomim.evaluate.knn import KNN
from pantomim.evaluate.label_free import LabelFree
from pantomim.evaluate.linear import Linear
from pantomim.evaluate.linear_mae import LinearMAE
from pantomim.evaluate.robustness import Robustness
from pantomim.evaluate.segmentation import Segmentation
from pantomim.evaluate.segmenter import SegmenterEvaluation
from pantomim.evaluate.trained import TaskEvaluation

PROTOCOLS: tuple[type[Evaluation], ...] = (KNN, Linear, FewLabels, LinearMAE, Attentive, Segmentation, LabelFree)
TASK_PROTOCOLS: tuple[type[TaskEvaluation], ...] = (Classification, Robustness, SegmenterEvaluation)


def protocol_named(name: str) -> type[Evaluation]:
    """The protocol of a name, as commands and plans write it."""
    return one_of("Evaluation.protocol", name, {protocol.protocol: protocol for protocol in PROTOCOLS})


def evaluation_of(config: Pretrain, out: Path, against: Path | None = None) -> TaskEvaluation:
    """How a run for a task in the folder `out` is scored on the test part of its data, maybe against another run."""
    other = None if against is None else str(against)
    how: dict[str, Any] = {"device": config.runtime.device, "against": other, "scale": config.data.scale}
    if (masks := config.data.masks) is None:
        return Classification(str(out), config.data.source, **how)
    how |= {"masks": masks.name, "ignore": masks.ignore, "reduce_zero": masks.reduce_zero}
    return SegmenterEvaluation(str(out), config.data.source, **how)
