"""What the site adds to docs/: pages and files from elsewhere in the repository, and recipes as they stand in the code.

Links in Markdown are those of the repository, so that they work on GitHub, too; here they become links of the site.
"""

import os
import re
from pathlib import Path

from mkdocs.structure.files import File, InclusionLevel

from pantomim.cli.docs import filled

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?(\))")


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

    return filled(LINK.sub(turned, markdown))
