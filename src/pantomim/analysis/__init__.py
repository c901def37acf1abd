"""Looking into runs and encoders: model in, arrays out; one analysis a file."""

from pantomim.analysis.alignment import Alignment
from pantomim.analysis.attention_distance import AttentionDistance
from pantomim.analysis.cka import CKA
from pantomim.analysis.guidance import Guidance
from pantomim.analysis.inspection import Inspection, LayerAnalysis
from pantomim.analysis.spectrum import Spectrum

ANALYSES: tuple[type[Inspection], ...] = (AttentionDistance, Spectrum, CKA, Alignment, Guidance)
LAYERS: dict[str, type[LayerAnalysis]] = {kind.name: kind for kind in ANALYSES if issubclass(kind, LayerAnalysis)}
