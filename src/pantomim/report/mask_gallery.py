"""The gallery of masks: strategies side by side, what each masks, and the numbers behind it; a page and a picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from pantomim.analysis.masks import MaskSurvey, Photo
from pantomim.core.files import replace_file
from pantomim.masking import strategy_of
from pantomim.report.charts import spectrum_chart
from pantomim.report.html import data_uri, fill_template
from pantomim.report.mask_poster import RULED, draw_poster, usual_counts

PER_ROW = 6  # strategies
ON_ONE_PHOTO = 6
PHOTO = 160  # pixels: side of a square photo on the page
SIZES = {"wide": (880, 380), "narrow": (430, 380)}
# What the table has of each strategy: heading, statistic and decimals.
COLUMNS = (
    ("masked patches", "num_masked", 1), ("visible clusters", "num_clusters", 1),
    ("largest cluster", "largest_cluster", 1), ("visible neighbours", "neighbours", 2),
    ("mean distance", "mean_distance", 2), ("largest distance", "max_distance", 1),
)  # fmt: skip


@dataclass(frozen=True)
class Gallery:
    """What a gallery shows; with one photo, several masks of each strategy are laid on it."""

    surveys: Sequence[MaskSurvey]  # one for each strategy, all on the same grid
    ratio: float  # share of masked patches that was asked for
    seed: int  # of the draws
    samples: int  # masks shown of each
    photos: Sequence[Photo]  # to lay masks on
    command: str  # makes this gallery again

    @property
    def brightest(self) -> float:
        """The mean visibility from which colour is full: twice the usual one, so that strategies can be compared."""
        return min(1.0, 2 * (1 - self.ratio))

    @property
    def overlays(self) -> list[tuple[Photo, int]]:
        """Which photo lies under which mask of every strategy."""
        if len(self.photos) == 1:
            return [(self.photos[0], index) for index in range(min(self.samples, ON_ONE_PHOTO))]
        return [(photo, index) for index, photo in enumerate(self.photos)]


def write_gallery(gallery: Gallery, out: Path) -> tuple[Path, Path]:
    """Write the page and, beside it, a picture (PNG) of the same name; the page needs no other file."""
    picture = out.with_suffix(".png")
    replace_file(out, render(gallery).encode())
    replace_file(picture, draw_poster(gallery.surveys, gallery.samples, gallery.overlays, gallery.brightest))
    return out, picture


def render(gallery: Gallery) -> str:
    """The page as HTML."""
    rows, columns = gallery.surveys[0].grid
    spectra = [(survey.name, strategy_of(survey.name).colour, survey.spectrum) for survey in gallery.surveys]
    return fill_template(
        "masks.html",
        ("page.css", "masks.css"),
        lead=f"{usual_counts(gallery.surveys)} of {rows * columns:,} patches on a grid of {rows} × {columns}. Coloured "
        f"patches stay visible, gray ones are masked.",
        gallery=gallery,
        rows=rows,
        columns=columns,
        photo_width=PHOTO * math.sqrt(columns / rows),
        draws=len(gallery.surveys[0].visible),
        per_row=math.ceil(len(gallery.surveys) / math.ceil(len(gallery.surveys) / PER_ROW)),
        photos=[(photo.name, Markup(data_uri(photo.pixels, "JPEG"))) for photo in gallery.photos],
        headings=[heading for heading, _, _ in COLUMNS],
        charts={kind: spectrum_chart(spectra, max(rows, columns), size) for kind, size in SIZES.items()},
        **{tool.__name__: tool for tool in (strategy_of, numbers, mask_svg, veil_svg, gray, heat)},
    )


def numbers(survey: MaskSurvey) -> list[tuple[str, str]]:
    """The row of the table: mean and std over the masks, in the order of `COLUMNS`."""
    texts = []
    for _, name, digits in COLUMNS:
        values = survey.num_masked if name == "num_masked" else getattr(survey.statistics, name)
        same = bool(np.ptp(values) == 0)
        shown = 0 if same and name == "num_masked" else digits
        texts.append((f"{values.mean():.{shown}f}", "" if same else f"±{values.std():.{digits}f}"))
    return texts


def mask_svg(visible: np.ndarray, name: str) -> Markup:
    """A mask: visible patches in the strategy's colour, masked ones as the ground."""
    cells = "".join(f"M{column} {row}h1v1h-1z" for row, column in np.argwhere(visible))
    return _svg(visible.shape, "mask" if max(visible.shape) <= RULED else "mask fine", name, cells)


def veil_svg(visible: np.ndarray, name: str) -> Markup:
    """What covers the masked patches of a photo, row by row in runs."""
    runs = []
    for row, masked in enumerate(~visible):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], masked.astype(int), [0]])))
        runs += [f"M{start} {row}h{end - start}v1h{start - end}z" for start, end in edges.reshape(-1, 2)]
    return _svg(visible.shape, "veil", name, "".join(runs))


def gray(values: np.ndarray) -> np.ndarray:
    """A field as an 8-bit picture (H, W, 1) from its lowest value, black, to its highest, white."""
    low, high = float(values.min()), float(values.max())
    return np.rint(255 * (values - low) / max(high - low, 1e-12)).astype(np.uint8)[:, :, None]


def heat(shares: np.ndarray, rgb: tuple[int, int, int]) -> np.ndarray:
    """Shares of full colour as opacity of that colour (H, W, 4), for light and for dark pages; full from 1 on."""
    opacity = np.rint(255 * shares.clip(max=1.0)).astype(np.uint8)
    return np.dstack([*(np.full_like(opacity, value) for value in rgb), opacity])


def _svg(grid: tuple[int, ...], kind: str, name: str, path: str) -> Markup:
    rows, columns = grid
    return Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}"><path d="{}"/></svg>').format(
        kind, columns, rows, name, path
    )
