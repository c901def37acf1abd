"""Links between the repository's pages, and the code that pages of methods quote."""

import re
from pathlib import Path

import pytest

from pantomim.cli.docs import filled

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
METHODS = [page for page in PAGES if page.parent.name == "methods"]


def anchors(page: Path) -> set[str]:
    """What GitHub and the site make of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    text = re.sub(r"`[^`\n]+`", "", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE))
    for link, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", text):
        if not link.startswith(("http:", "https:", "mailto:")):
            target = (page.parent / link) if link else page
            assert target.exists(), f"{link} is not there"
            assert not anchor or anchor in anchors(target), f"{link} has no #{anchor}"


@pytest.mark.parametrize("page", METHODS, ids=lambda page: page.stem)
def test_pages_of_methods_quote_the_code_that_runs(page: Path):
    source, quotes = "", 0
    for row in page.read_text().splitlines():
        cell = row.rstrip(" |").rpartition("| ")[2]
        if row.startswith(("| step |", "| colour |")):
            source = (page.parent / re.search(r"\]\((\S+\.py)\)", cell)[1]).read_text()  # type: ignore[index]
        elif not row.startswith("|"):
            source = ""
        elif source and not row.startswith("|---"):
            assert cell.strip("`") in source, f"{cell} is not in the code"
            quotes += 1
    assert quotes or page.stem == "README"


@pytest.mark.parametrize("page", METHODS, ids=lambda page: page.stem)
def test_recipes_and_code_are_put_into_the_pages_of_methods(page: Path):
    text = filled(page.read_text())
    assert "<!--" not in text
    assert page.stem == "README" or "| recipe | what | cost | score |" in text
