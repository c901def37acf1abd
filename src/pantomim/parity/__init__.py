"""Golden numbers of the methods' official code, and whether our modules compute the same."""

from pantomim.parity import beit, cae, clip, colormae, dbot, ijepa, mae, maskfeat, masks, milan, mocov3, tokenizer
from pantomim.parity.verification import ItemResult, format_results, verify

# Each has ITEMS: how its items call themselves, and what rebuilds them; `mae_pretrain` serves mae_pretrain_a, _b ...
PARITY = (mae, beit, cae, dbot, milan, colormae, maskfeat, masks, mocov3, ijepa, clip, tokenizer)

__all__ = ["PARITY", "ItemResult", "format_results", "verify"]
