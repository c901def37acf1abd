from pathlib import Path

from tyro.conf import Positional

import pantomim
from pantomim.cli.command_line import typed
from pantomim.cli.console import say, section
from pantomim.core.names import did_you_mean

FOLDER = Path(pantomim.__file__).parent / "docs"


@typed()
def docs(page: Positional[str | None] = None) -> None:
    """Read the documentation that comes with the package.

    Examples:
        pantomim docs
        pantomim docs data

    Args:
        page: Its name; without one they are listed.
    """
    files = sorted([*FOLDER.glob("*.md"), *FOLDER.glob("*/*.md")], key=lambda path: (len(path.parts), path.stem))
    pages = {path.relative_to(FOLDER).with_suffix("").as_posix(): path.read_text(encoding="utf-8") for path in files}
    if page is None:
        section("Pages", [(name, text.partition("\n")[0].lstrip("# ")) for name, text in pages.items()])
    elif page in pages:
        say(pages[page])
    else:
        raise ValueError(f"There is no page {page}.{did_you_mean(page, pages, '`pantomim docs` lists them all.')}")
