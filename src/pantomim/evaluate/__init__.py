"""What a frozen encoder is worth: one protocol a file, scored beside a random-init encoder and raw pixels.

And what a fine-tuned classifier is worth, which is scored alone.
"""

from pantomim.core.names import did_you_mean
from pantomim.evaluate.attentive import Attentive
from pantomim.evaluate.base import Evaluation, Memo, evaluate, evaluate_to_file, headline
from pantomim.evaluate.classification import Classification, ClassifierEvaluation
from pantomim.evaluate.few_labels import FewLabels
from pantomim.evaluate.knn import KNN
from pantomim.evaluate.linear import Linear
from pantomim.evaluate.linear_mae import LinearMAE
from pantomim.evaluate.robustness import Robustness
from pantomim.evaluate.segmentation import Segmentation

PROTOCOLS: tuple[type[Evaluation], ...] = (KNN, Linear, FewLabels, LinearMAE, Attentive, Segmentation)
CLASSIFIER_PROTOCOLS: tuple[type[ClassifierEvaluation], ...] = (Classification, Robustness)


def protocol_named(name: str) -> type[Evaluation]:
    """The protocol of a name, as commands and plans write it."""
    known = {protocol.protocol: protocol for protocol in PROTOCOLS}
    if name in known:
        return known[name]
    raise ValueError(f"Evaluation.protocol must be one of {', '.join(known)}; got {name}.{did_you_mean(name, known)}")


__all__ = [
    "CLASSIFIER_PROTOCOLS",
    "PROTOCOLS",
    "Evaluation",
    "Memo",
    "evaluate",
    "evaluate_to_file",
    "headline",
    "protocol_named",
]
