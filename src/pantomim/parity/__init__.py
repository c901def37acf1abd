"""Golden numbers of the methods' official code, and whether our modules compute the same."""

from types import ModuleType

from pantomim.parity import (
    beit,
    cae,
    colormae,
    dbot,
    finetune,
    finetuning,
    ijepa,
    mae,
    masks,
    milan,
    mocov3,
    segmentation,
    segmentation_data,
    segmenting,
    targets,
)
from pantomim.parity.verification import ItemResult, format_results, verify

# Each has ITEMS, functions that bear the names of the items they rebuild: `mae_pretrain` serves mae_pretrain_a, _b ...
PARITY: tuple[ModuleType, ...] = (
    *(mae, beit, cae, dbot, milan, colormae, mocov3, ijepa, masks, targets),
    *(finetune, finetuning, segmentation, segmentation_data, segmenting),
)

__all__ = ["PARITY", "ItemResult", "format_results", "verify"]
