"""What a frozen encoder is worth: one protocol a file, scored beside a random-init encoder and raw pixels.

And what a network is worth that was trained for a task, which is scored alone.
"""

from pantomim.core.names import did_you_mean
from pantomim.evaluate.attentive import Attentive
from pantomim.evaluate.base import Evaluation, Memo, evaluate, evaluate_to_file, headline
from pantomim.evaluate.classification import Classification
from pantomim.evaluate.few_labels import FewLabels
from pantomim.evaluate.knn import KNN
from pantomim.evaluate.linear import Linear
from pantomim.evaluate.linear_mae import LinearMAE
from pantomim.evaluate.robustness import Robustness
from pantomim.evaluate.segmentation import Segmentation
from pantomim.evaluate.segmenter import SegmenterEvaluation
from pantomim.evaluate.trained import TaskEvaluation

PROTOCOLS: tuple[type[Evaluation], ...] = (KNN, Linear, FewLabels, LinearMAE, Attentive, Segmentation)
TASK_PROTOCOLS: tuple[type[TaskEvaluation], ...] = (Classification, Robustness, SegmenterEvaluation)


def protocol_named(name: str) -> type[Evaluation]:
    """The protocol of a name, as commands and plans write it."""
    known = {protocol.protocol: protocol for protocol in PROTOCOLS}
    if name in known:
        return known[name]
    raise ValueError(f"Evaluation.protocol must be one of {', '.join(known)}; got {name}.{did_you_mean(name, known)}")


__all__ = [
    "PROTOCOLS",
    "TASK_PROTOCOLS",
    "Classification",
    "Evaluation",
    "Memo",
    "SegmenterEvaluation",
    "evaluate",
    "evaluate_to_file",
    "headline",
    "protocol_named",
]
