"""What the site adds to docs/: pages and files from elsewhere in the repository, and recipes as they stand in the code.

Links in Markdown are those of the repository, so that they work on GitHub, too; here they become links of the site.
"""

import inspect
import os
import re
from importlib import import_module
from pathlib import Path

from mkdocs.structure.files import File, InclusionLevel

from pantomim.recipes import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?(\))")
RECIPES, CODE = re.compile(r"<!-- recipes: (\w+) -->"), re.compile(r"<!-- code: (\S+) (\w+) -->")


def place(path: str) -> str:
    """Where a file of the repository lies in the site."""
    if path in PAGES:
        return PAGES[path]
    if (ROOT / path / "README.md").is_file():
        path += "/README.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"source/{path.removeprefix('src/')}.md" if path.endswith(".py") else path


def linked(text: str, path: str) -> set[str]:
    """The files of the repository that a page of it links to."""
    return {os.path.normpath(os.path.join(os.path.dirname(path), found[2])) for found in LINK.finditer(text)}


def on_files(files, config):
    """Add README and its like, and what lies outside docs/ and is linked to."""
    pages = [*PAGES, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    outside = {target for path in pages for target in linked((ROOT / path).read_text(), path)}
    for path in {*PAGES, *(path for path in outside if not path.startswith("docs") and (ROOT / path).is_file())}:
        text = (ROOT / path).read_text()
        if path.endswith(".py"):
            text = f"---\nsearch:\n  exclude: true\n---\n\n# {path.removeprefix('src/')}\n\n```python\n{text}```\n"
        inclusion = InclusionLevel.INCLUDED if path in PAGES else InclusionLevel.NOT_IN_NAV
        files.append(File.generated(config, place(path), content=text, inclusion=inclusion))
    return files


def on_page_markdown(markdown, page, config, files):
    """Put in recipes and code; turn links of the repository into links of the site."""
    here = page.file.src_uri
    if here.startswith("source/"):
        return markdown
    path = {site: path for path, site in PAGES.items()}.get(here, f"docs/{here}")

    def turned(found: re.Match[str]) -> str:
        target = place(os.path.normpath(os.path.join(os.path.dirname(path), found[2])))
        return f"{found[1]}{os.path.relpath(target, os.path.dirname(here))}{found[3] or ''}{found[4]}"

    markdown = RECIPES.sub(lambda found: recipes(found[1]), LINK.sub(turned, markdown))
    return CODE.sub(lambda found: code(found[1], found[2]), markdown)


def recipes(method: str) -> str:
    """The recipes of a method as a table, with what differs from the paper below."""
    rows, notes = ["| recipe | what | cost | score |", "|---|---|---|---|"], dict[str, None]()
    for family in FAMILIES:
        if family.name == method or family.name.startswith(f"{method}_"):
            for each in family.recipes:
                rows.append(f"| `{each.name}` | {each.summary} | {each.cost} | {each.expected} |")
                notes |= dict.fromkeys(each.notes)
    if len(rows) == 2:
        raise ValueError(f"There are no recipes of {method}.")
    return "\n".join([*rows, "", *(f"- {note}" for note in notes)])


def code(path: str, name: str) -> str:
    """A function of the package."""
    module = import_module("pantomim." + path.removesuffix(".py").replace("/", "."))
    return f"```python\n{inspect.getsource(getattr(module, name))}```"
