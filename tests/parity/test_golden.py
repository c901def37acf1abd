"""The golden items: a selection that comes with the source, and all of them where they are at hand."""

from pathlib import Path

import pytest

from pantomim.parity.verification import FAMILIES, verify, verify_item

SELECTION = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[2] / ".." / "shared" / "golden"
STEMS = tuple(stem for stem, _ in FAMILIES)


@pytest.mark.parametrize("path", sorted(SELECTION.glob("*.json")), ids=lambda path: path.stem)
def test_selected_item(path):
    result = verify_item(path)
    assert result.status == "PASS", result
    assert result.compared >= 12


def test_selection_stays_small():
    assert sum(path.stat().st_size for path in SELECTION.iterdir()) <= 3 * 2**20


@pytest.mark.skipif(not SHARED.is_dir(), reason="the whole collection is not beside this repository")
def test_every_item_that_we_rebuild():
    results = verify(SHARED)
    assert [result for result in results if result.status == "FAIL"] == []
    ours = [result for result in results if result.name.startswith(STEMS)]
    assert len(ours) >= 6
    assert {result.status for result in ours} == {"PASS"}
