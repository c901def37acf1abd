"""How every page is made: one base template that must find all its values, pictures as data URIs, numbers for reading.

A page is one file that needs nothing else: to be read offline, printed or mailed.
"""

import base64
import csv
import io
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from importlib import metadata, resources
from typing import Any, Literal

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

SVG = "http://www.w3.org/2000/svg"
LATEX = {letter: f"\\{letter}" for letter in "&%$#_{}"}  # what a letter is in LaTeX
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$"}
LATEX |= {"×": r"$\times$", "–": "--", "\N{NO-BREAK SPACE}": "~"}
CRISP = 96  # pixels: smaller pictures are enlarged without smoothing, and therefore kept exactly
TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("pantomim.report", "."),
    autoescape=jinja2.select_autoescape(["html"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def fill_template(template: str, styles: Sequence[str] = ("page.css",), /, **values: Any) -> str:
    """A page as HTML; a value that the template needs and does not get is an error."""
    sheets = resources.files("pantomim.report")
    style = "".join(sheets.joinpath(name).read_text(encoding="utf-8") for name in styles)
    return TEMPLATES.get_template(template).render(style=Markup(style), **values)  # ours, without user strings


def data_uri(picture: np.ndarray, kind: Literal["PNG", "JPEG", "WEBP"] = "PNG") -> str:
    """A data URI of an 8-bit picture (H, W, C), gray or RGB, maybe with opacity; JPEG and WebP are not exact."""
    shown = Image.fromarray(np.ascontiguousarray(picture[:, :, 0] if picture.shape[2] == 1 else picture))
    shown.save(buffer := io.BytesIO(), kind, optimize=kind == "PNG", quality=88)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def file_uri(text: str, kind: str) -> str:
    """A data URI of a text file."""
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(text.encode()).decode('ascii')}"


def svg_uri(chart: Markup) -> str:
    """A data URI of a chart as a file of its own, in the colours of a light page."""
    sheet = resources.files("pantomim.report").joinpath("page.css").read_text(encoding="utf-8")
    drawn = [sheet[: sheet.index("}") + 1], *(line for line in sheet.splitlines() if line.startswith(".chart"))]
    style = f"<style>{''.join(drawn)} svg {{ font-family: sans-serif; }}</style>"
    head, end, rest = str(chart).partition(">")
    return file_uri(head.replace("<svg", f'<svg xmlns="{SVG}"', 1) + end + style + rest, "image/svg+xml")


def csv_uri(rows: Sequence[Sequence[str]]) -> str:
    """A data URI of a table, its headings first, as CSV."""
    csv.writer(text := io.StringIO()).writerows(rows)
    return file_uri(text.getvalue(), "text/csv")


def latex(rows: Sequence[Sequence[str]], best: Collection[tuple[int, int]] = ()) -> str:
    """A table, its headings first, as LaTeX for the package booktabs; `best` places are bold, headings not counted."""

    def cell(text: str, place: tuple[int, int]) -> str:
        words = "".join(LATEX.get(letter, letter) for letter in str(text))
        return rf"\textbf{{{words}}}" if place in best else words

    lines = [
        " & ".join(cell(text, (number, column)) for column, text in enumerate(row)) + r" \\"
        for number, row in enumerate(rows, -1)
    ]
    begin, end = rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}", r"\end{tabular}"
    return "\n".join([begin, r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", end, ""])


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 59.5:
        return f"{seconds:.{0 if seconds >= 0.95 else 1}f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def length(value: Any) -> str:
    """A duration of the config in words."""
    for unit in ("steps", "epochs") if isinstance(value, dict) else ():
        if value.get(unit) is not None:
            return f"{value[unit]:{',g' if isinstance(value[unit], float) else ','}} {unit}"
    return "not stated"


def text_of(value: Any) -> str:
    """A value for reading."""
    return " ".join(map(text_of, value)) if isinstance(value, list) else "–" if value in (None, "") else str(value)


def plus_minus(mean: float, std: float | None, digits: str, scale: float = 1.0) -> str:
    """A mean, with the standard deviation if there is one."""
    return f"{scale * mean:{digits}}" + ("" if std is None else f" ± {scale * std:{digits.lstrip('+')}}")


def percent(share: float, digits: int = 1) -> str:
    """A share for reading."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def slug(words: str) -> str:
    """Words as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def surroundings(environment: Mapping[str, Any]) -> dict[str, str]:
    """Versions and hardware of an environment.json, as far as it has them."""
    packages = environment.get("packages", {})
    versions = [f"{name} {packages[name]}" for name in ("pantomim", "torch", "timm") if name in packages]
    versions += [f"Python {environment['python']}"] if environment.get("python") else []
    hardware = [environment.get(part) for part in ("gpu", "cpu")]
    if any(hardware):
        counts = {part: environment.get(part) for part in ("cores", "threads")}
        hardware += [f"{count} {part if count > 1 else part[:-1]}" for part, count in counts.items() if count]
        hardware += [environment.get("precision")]
    named = {"Versions": versions, "Hardware": [str(part) for part in hardware if part]}
    return {name: ", ".join(parts) for name, parts in named.items() if parts}


TEMPLATES.globals |= {"version": metadata.version("pantomim")}
TEMPLATES.filters |= {"duration": duration, "quote": shlex.quote, "percent": percent, "python": repr, "png": data_uri}
TEMPLATES.filters |= {"latex": lambda rows, best: file_uri(latex(rows, best), "text/x-tex"), "slug": slug}
TEMPLATES.filters |= {"photo": lambda photo: data_uri(photo, "PNG" if max(photo.shape[:2]) < CRISP else "WEBP")}
TEMPLATES.filters |= {"svg": svg_uri, "csv": csv_uri}
