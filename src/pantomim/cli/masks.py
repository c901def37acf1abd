import shlex
from pathlib import Path

from tyro.conf import Positional

from pantomim.cli.command_line import typed
from pantomim.cli.console import say
from pantomim.core.progress import report, tracked

SHOWN = ("random", "red", "green", "blue", "purple", "block")  # unless others are named


def _strategies() -> str:
    from pantomim.masking import STRATEGIES

    return f"Strategies: {', '.join(STRATEGIES)}."


@typed(also=_strategies)
def masks(
    strategies: Positional[tuple[str, ...]] = (),
    grid: str = "14x14",
    ratio: float = 0.75,
    image: tuple[Path, ...] = (),
    bank: Path | None = None,
    out: Path = Path("masks.html"),
    samples: int = 7,
    draws: int = 2000,
    seed: int = 0,
) -> None:
    """Show what strategies mask, side by side: sample masks, their patterns, spectra and numbers.

    Examples:
        pantomim masks
        pantomim masks random green block --image photo.jpg --out masks.html

    Args:
        strategies: Names; without any a selection, or only the bank if one is given.
        grid: Rows and columns of patches, as ROWSxCOLUMNS.
        ratio: Share of masked patches.
        image: Pictures to lay the masks on.
        bank: An .npz of patterns, such as the authors', as one more strategy.
        out: The page, FILE.html; a picture FILE.png is put beside it.
        samples: Masks shown of each strategy.
        draws: Masks that the numbers are measured on.
        seed: Of the draws.
    """
    from pantomim.analysis.masks import choose_maskers, load_photo, parse_grid, survey
    from pantomim.core.files import check_out
    from pantomim.report.mask_gallery import Gallery, write_gallery

    check_out("masks.out", out, (".html", ".htm"))
    size = parse_grid(grid)
    if not 1 <= samples <= draws:
        raise ValueError(f"masks.samples must be from 1 to draws; got {samples} of {draws}. Draw more, or show fewer.")
    names = strategies or (() if bank else SHOWN)
    maskers = choose_maskers(names, ratio, bank)
    photos = [load_photo(path, size) for path in image]
    drawn = tracked(maskers.items(), "masks: drawing", len(maskers))  # at first, a colour's patterns take ten seconds
    surveys = [survey(name, masker, size, num=draws, seed=seed) for name, masker in drawn]
    report("masks: writing the page")
    words = ["pantomim", "masks", *names, "--grid", grid, "--ratio", f"{ratio:g}"]
    words += ["--draws", str(draws), "--samples", str(samples), "--seed", str(seed)]
    words += (["--bank", str(bank)] if bank else []) + (["--image", *map(str, image)] if image else [])
    page, picture = write_gallery(Gallery(surveys, ratio, seed, samples, photos, shlex.join(words)), out)
    say(f"Gallery: {page}, and as a picture: {picture}")
