"""Golden numbers of the methods' official code, and whether our modules compute the same."""

from pathlib import Path
from types import ModuleType

from pantomim.parity import (
    beit,
    cae,
    colormae,
    dbot,
    finetuning,
    ijepa,
    mae,
    masks,
    milan,
    mocov3,
    segmentation,
    targets,
)
from pantomim.parity.verification import ItemResult, format_results, verify

GOLDEN = Path(__file__).parent / "golden"  # the selection of items that comes with the package
# Their public functions from an item alone bear the names of those they rebuild: `mae_pretrain` mae_pretrain_a, _b ...
PARITY: tuple[ModuleType, ...] = (
    *(mae, beit, cae, dbot, milan, colormae, mocov3, ijepa, masks, targets),
    *(finetuning, segmentation),
)

__all__ = ["GOLDEN", "PARITY", "ItemResult", "format_results", "verify"]
