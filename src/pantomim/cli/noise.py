from pathlib import Path

from tyro.conf import Positional

from pantomim.cli.command_line import typed
from pantomim.cli.console import say, section


@typed()
def noise(
    color: Positional[str],
    out: Path | None = None,
    sigma: tuple[float, ...] | None = None,
    passes: int | None = None,
    equalise: bool = True,
    blur: str = "sampled_kernel",
    patterns: int = 256,
    side: int = 256,
    seed: int = 0,
) -> None:
    """Make a bank of noise patterns for ColorMAE's masks, and print its spectrum.

    Examples:
        pantomim noise green
        pantomim noise red --out red.npz --patterns 64

    Args:
        color: Which filter: red low-pass, blue high-pass, green band-pass, purple band-stop, white none.
        out: FILE.npz; by default the cache, where training looks for it (and would have made it itself).
        sigma: Of the Gaussian, in patches: one number for red and blue, two for green and purple. Default: the preset.
        passes: How often filter and equalisation are repeated; 1 is the paper's equation. Default: the preset.
        equalise: Replace values by their ranks after each pass.
        blur: The Gaussian sampled at whole patches (sampled_kernel), or its transfer_function.
        patterns: How many.
        side: Height and width of each, in patches.
        seed: Of the white noise.
    """
    settings = {name: value for name, value in locals().items() if name != "out"}
    import numpy as np

    from pantomim.analysis.masks import BAND_EDGES, field_bands
    from pantomim.config import from_dict
    from pantomim.core.files import check_out
    from pantomim.masking.bank import bank_path, cached_bank, write_bank
    from pantomim.masking.noise import Noise

    made = from_dict(Noise, settings, "noise")
    if out is not None:
        check_out("noise.out", out, [".npz"])
    bank = cached_bank(made)
    if out is not None:
        write_bank(out, bank)
    sample = bank[:16].numpy()
    visible = sample > np.quantile(sample, 0.75, axis=(1, 2), keepdims=True)
    bands, shown = field_bands(sample).mean(axis=0), field_bands(visible).mean(axis=0)
    rows = [("cycles a patch", "patterns   highest quarter   (white noise: 1)")] + [
        (f"{low:.2f} to {high:.2f}", f"{power:8.3g}   {of_mask:15.3g}")
        for low, high, power, of_mask in zip(BAND_EDGES[:-1], BAND_EDGES[1:], bands, shown, strict=True)
    ]
    spread, times = made.resolved
    words = f"sigma {', '.join(f'{value:g}' for value in spread)}, passes {times}, " if spread else ""
    section(f"{color}: {words}{patterns} patterns of {side} x {side}, {bank.nbytes / 1e6:.1f} MB", rows)
    say(f"\nBank: {out or bank_path(made)}")
