"""The gallery of masks: strategies side by side, what each hides, and the numbers behind it; a page and a picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from markupsafe import Markup

from pantomim.analysis.mask_survey import MaskSurvey, Photo
from pantomim.core.files import replace_file
from pantomim.masking import strategy_of
from pantomim.report.mask_poster import draw_poster, usual_counts
from pantomim.report.pictures import jpeg, png
from pantomim.report.spectra import NARROW, WIDE, Spectrum, spectrum_chart
from pantomim.report.template import check_page_path, fill_template

PER_ROW = 6  # strategies
ON_ONE_PHOTO = 6
RULED = 40  # patches: on larger grids no lines are drawn between them
PHOTO = 160  # pixels: side of a square photo on the page
SIZES = {"wide": WIDE, "narrow": NARROW}


@dataclass(frozen=True)
class Gallery:
    """What a gallery shows.

    Args:
        surveys: One for each strategy, all on the same grid.
        ratio: Share of hidden patches that was asked for.
        seed: Of the draws.
        samples: Masks shown of each.
        photos: Pictures to lay masks on; with one, several masks of each strategy are laid on it.
        command: That makes this gallery again.
    """

    surveys: Sequence[MaskSurvey]
    ratio: float
    seed: int
    samples: int
    photos: Sequence[Photo]
    command: str

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.surveys[0].grid

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


@dataclass(frozen=True)
class Card:
    """One strategy, ready for the page."""

    name: str
    color: str
    hides: str
    samples: list[Markup]
    piece: str | None
    piece_aspect: float
    frame: str
    window: str | None
    window_mask: Markup | None
    why_no_pattern: str
    heat: str
    lowest: float
    highest: float
    photos: list[Markup]
    numbers: list[tuple[str, str]]


HEADINGS = (
    "hidden patches",
    "visible clusters",
    "largest cluster",
    "visible neighbours",
    "mean distance",
    "largest distance",
)


def write_gallery(gallery: Gallery, out: Path) -> tuple[Path, Path]:
    """Write the page and, beside it, a picture (PNG) of the same name; the page needs no other file.

    Raises:
        ValueError: if the file's name does not end in .html.
        OSError: if a file cannot be written.
    """
    check_page_path("masks", out)
    picture = out.with_suffix(".png")
    replace_file(out, render(gallery).encode())
    replace_file(picture, draw_poster(gallery.surveys, gallery.samples, gallery.overlays, gallery.brightest))
    return out, picture


def render(gallery: Gallery) -> str:
    """The page as HTML."""
    rows, columns = gallery.grid
    spectra = [Spectrum(s.name, strategy_of(s.name).colour, s.spectrum) for s in gallery.surveys]
    return fill_template(
        "masks.html",
        styles=("page.css", "masks.css"),
        rows=rows,
        columns=columns,
        aspect=columns / rows,
        hidden=usual_counts(gallery.surveys),
        photo_width=PHOTO * math.sqrt(columns / rows),
        ratio=gallery.ratio,
        seed=gallery.seed,
        draws=len(gallery.surveys[0].visible),
        cards=[card(survey, gallery) for survey in gallery.surveys],
        per_row=math.ceil(len(gallery.surveys) / math.ceil(len(gallery.surveys) / PER_ROW)),
        brightest=gallery.brightest,
        photos=[(photo.name, Markup(jpeg(photo.pixels))) for photo in gallery.photos],  # a data URI, base64
        overlays=[(photo.name, gallery.photos.index(photo)) for photo, _ in gallery.overlays],
        headings=HEADINGS,
        charts={kind: spectrum_chart(spectra, max(rows, columns), size) for kind, size in SIZES.items()},
        longer=max(rows, columns),
        left_out=[(survey.name, survey.left_out) for survey in gallery.surveys if survey.left_out],
        command=gallery.command,
        version=metadata.version("pantomim"),
    )


def card(survey: MaskSurvey, gallery: Gallery) -> Card:
    """One strategy's pictures and numbers."""
    style, pattern, visibility = strategy_of(survey.name), survey.pattern, survey.visibility
    height, width = pattern.values.shape if pattern else (1, 1)
    frame = ""
    if pattern:
        rows, columns = survey.grid
        frame = (
            f"left: {100 * pattern.left / width:.3f}%; top: {100 * pattern.top / height:.3f}%; "
            f"width: {100 * columns / width:.3f}%; height: {100 * rows / height:.3f}%"
        )
    return Card(
        name=survey.name,
        color=style.colour,
        hides=style.sentence,
        samples=[mask_svg(mask, f"A mask of {survey.name}") for mask in survey.visible[: gallery.samples]],
        piece=png(gray(pattern.values)) if pattern else None,
        piece_aspect=width / height,
        frame=frame,
        window=png(gray(pattern.window)) if pattern else None,
        window_mask=mask_svg(pattern.visible, "What the window leaves visible") if pattern else None,
        why_no_pattern=style.drawn,
        heat=png(heat(visibility / gallery.brightest, style.rgb)),
        lowest=float(visibility.min()),
        highest=float(visibility.max()),
        photos=[
            veil_svg(survey.visible[index], f"{photo.name} under a mask of {survey.name}")
            for photo, index in gallery.overlays
        ],
        numbers=numbers(survey),
    )


def numbers(survey: MaskSurvey) -> list[tuple[str, str]]:
    """The row of the table: mean and deviation over the masks, in the order of `HEADINGS`."""
    found = survey.statistics
    columns = [
        (survey.num_masked, 0 if np.ptp(survey.num_masked) == 0 else 1),
        (found.num_clusters, 1),
        (found.largest_cluster, 1),
        (found.neighbours, 2),
        (found.mean_distance, 2),
        (found.max_distance, 1),
    ]
    return [
        (f"{values.mean():.{digits}f}", "" if np.ptp(values) == 0 else f"±{values.std():.{max(digits, 1)}f}")
        for values, digits in columns
    ]


def mask_svg(visible: np.ndarray, name: str) -> Markup:
    """A mask: visible patches in the strategy's colour, hidden ones as the ground."""
    rows, columns = visible.shape
    cells = "".join(f"M{column} {row}h1v1h-1z" for row, column in np.argwhere(visible))
    return _svg(rows, columns, "mask" if max(rows, columns) <= RULED else "mask fine", name, f'<path d="{cells}"/>')


def veil_svg(visible: np.ndarray, name: str) -> Markup:
    """What covers the hidden patches of a photo, row by row in runs."""
    rows, columns = visible.shape
    runs = []
    for row, hidden in enumerate(~visible):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], hidden.astype(int), [0]])))
        runs += [f"M{start} {row}h{end - start}v1h{start - end}z" for start, end in edges.reshape(-1, 2)]
    return _svg(rows, columns, "veil", name, f'<path d="{"".join(runs)}"/>')


def gray(values: np.ndarray) -> np.ndarray:
    """A field as an 8-bit picture (H, W, 1) from its lowest value, black, to its highest, white."""
    low, high = float(values.min()), float(values.max())
    return np.rint(255 * (values - low) / max(high - low, 1e-12)).astype(np.uint8)[:, :, None]


def heat(shares: np.ndarray, rgb: tuple[int, int, int]) -> np.ndarray:
    """Shares of full colour as opacity of that colour (H, W, 4), for light and for dark pages; full from 1 on."""
    opacity = np.rint(255 * shares.clip(max=1.0)).astype(np.uint8)
    return np.dstack([*(np.full_like(opacity, value) for value in rgb), opacity])


def _svg(rows: int, columns: int, kind: str, name: str, inside: str) -> Markup:
    label = Markup.escape(name)
    return Markup(f'<svg class="{kind}" viewBox="0 0 {columns} {rows}" role="img" aria-label="{label}">{inside}</svg>')
