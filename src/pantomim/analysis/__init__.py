"""Looking into runs and encoders: model in, arrays out; one analysis a file."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pantomim.analysis.alignment import Alignment
from pantomim.analysis.attention_distance import AttentionDistance
from pantomim.analysis.attention_maps import AttentionMaps
from pantomim.analysis.cka import CKA
from pantomim.analysis.duplicates import Duplicates
from pantomim.analysis.guidance import Guidance
from pantomim.analysis.hardest import write_hardest
from pantomim.analysis.inspection import Inspection, LayerAnalysis
from pantomim.analysis.map import Map
from pantomim.analysis.neighbours import Neighbours
from pantomim.analysis.pca import PatchColours
from pantomim.analysis.reconstructions import Reconstruct
from pantomim.analysis.runs import run_config
from pantomim.analysis.segmentations import write_segmentations
from pantomim.analysis.spectrum import Spectrum
from pantomim.analysis.views import EncoderPictures, PictureAnalysis, write_rows_of, write_views
from pantomim.methods.cae import CAEConfig
from pantomim.methods.cmt_mae import CMTMAEConfig
from pantomim.methods.mae import MAEConfig
from pantomim.methods.segment import SegmentConfig
from pantomim.methods.supervised import SupervisedConfig

LOG = logging.getLogger(__name__)
ANALYSES: tuple[type[Inspection], ...] = (
    *(Reconstruct, AttentionMaps, PatchColours, Neighbours, Map, Duplicates),
    *(AttentionDistance, Spectrum, CKA, Alignment, Guidance),
)
LAYERS: dict[str, type[LayerAnalysis]] = {kind.name: kind for kind in ANALYSES if issubclass(kind, LayerAnalysis)}
VIEWS: dict[str, type[PictureAnalysis]] = {kind.name: kind for kind in ANALYSES if issubclass(kind, PictureAnalysis)}
OF_ANY_ENCODER = tuple(kind for kind in VIEWS.values() if issubclass(kind, EncoderPictures))
PICTURES: dict[type, Callable[..., Path | None]] = {  # what a run's own method gives to show, by its config
    MAEConfig: partial(write_rows_of, Reconstruct),
    CAEConfig: partial(write_rows_of, Alignment),
    CMTMAEConfig: partial(write_rows_of, Guidance),
    SegmentConfig: write_segmentations,
    SupervisedConfig: write_hardest,
}


def write_pictures(run: Path, source: str | None = None, **options: int) -> Path | None:
    """The file of pictures for a finished run's report, of its data at `source`; None if its method has none."""
    method = run_config(run).method
    if isinstance(method, CMTMAEConfig) and not method.masker.guided:  # nothing guides the masks
        return None
    if (write := PICTURES.get(type(method))) is None:
        return None
    LOG.info("Pictures: what the method itself makes of images")
    return write(run, source=source, **options)


def write_all_pictures(run: Path, source: str | None = None) -> None:
    """The same, and what its encoder makes of the images, where that was not made with these weights before."""
    if not any((run / name).exists() for name in ("classifier.json", "segmenter.json")):
        write_views(OF_ANY_ENCODER, run, source)
    write_pictures(run, source)
