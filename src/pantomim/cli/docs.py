import inspect
import re
from importlib import import_module
from pathlib import Path

from tyro.conf import Positional

import pantomim
from pantomim.cli.command_line import typed
from pantomim.cli.console import say, section
from pantomim.core.names import did_you_mean

FOLDER = Path(pantomim.__file__).parent / "docs"
RECIPES, CODE = re.compile(r"<!-- recipes: (\w+) -->"), re.compile(r"<!-- code: (\S+) (\w+) -->")
FROM_DOCSTRINGS = re.compile(r"^::: (\S+)\n(    .*\n)*", re.MULTILINE)


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
        say(FROM_DOCSTRINGS.sub(r"    python -m pydoc \1\n", filled(pages[page])))
    else:
        raise ValueError(f"There is no page {page}.{did_you_mean(page, pages, '`pantomim docs` lists them all.')}")


def filled(text: str) -> str:
    """A page with the recipes and functions that it names, as they stand in the code."""
    text = RECIPES.sub(lambda found: _recipes(found[1]), text)
    return CODE.sub(lambda found: _code(found[1], found[2]), text)


def _recipes(method: str) -> str:
    """The recipes of a method as a table, with what differs from the paper below."""
    from pantomim.recipes import FAMILIES

    rows, notes = ["| recipe | what | cost | score |", "|---|---|---|---|"], dict[str, None]()
    for family in FAMILIES:
        if family.name == method or family.name.startswith(f"{method}_"):
            for each in family.recipes:
                rows.append(f"| `{each.name}` | {each.summary} | {each.cost} | {each.expected} |")
                notes |= dict.fromkeys(each.notes)
    if len(rows) == 2:
        raise ValueError(f"There are no recipes of {method}.")
    return "\n".join([*rows, "", *(f"- {note}" for note in notes)])


def _code(path: str, name: str) -> str:
    """A function of the package."""
    module = import_module("pantomim." + path.removesuffix(".py").replace("/", "."))
    return f"```python\n{inspect.getsource(getattr(module, name))}```"
