"""How every page is made: one style, a template that must find all its values, no file beside it."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup


def fill_template(
    template: str, *, package: str = "pantomim.report", styles: Sequence[str] = ("page.css",), **values: Any
) -> str:
    """A page as HTML; a value that the template wants and does not get is an error.

    Args:
        template: Name of a file of `package`.
        package: Where the template lies.
        styles: Style sheets of `pantomim.report`, one after another; they are the template's `style`.
        **values: What else the template wants.
    """
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sheets = resources.files("pantomim.report")
    style = "".join(sheets.joinpath(name).read_text(encoding="utf-8") for name in styles)
    return templates.get_template(template).render(style=Markup(style), **values)  # ours, without user strings


def check_page_path(owner: str, out: Path) -> None:
    """Refuse a name that is no page's, before anything is computed.

    Raises:
        ValueError: if the file's name does not end in .html.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{owner}.out must end in .html; got {out}. The picture gets the same name with .png.")
