"""Notebooks and docs/python.md, as a reader runs them, at the smallest size: images and weights are made here."""

import inspect
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

import pantomim

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGE = (ROOT / "docs" / "python.md").read_text()
SMALL = {"runtime.tracker": "none", "runtime.device": "cpu", "batch_size": 16}
PARAMETERS = {
    "DATA": "photos",
    "INIT": "hf:dinov2",
    "OUT": "runs/small",
    "SIZE": "micro",
    "STEPS": 3,
    "SETTINGS": SMALL,
    "SCORING": {"images": 40, "test_images": 16},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With photos of four classes, and a DINOv2 of two blocks."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    made = tmp_path_factory.mktemp("notebooks")
    rng = np.random.default_rng(0)
    for index in range(80):
        place = made / "photos" / ("test" if index % 4 == 3 else "train") / f"class {index // 20}" / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        ramp = np.linspace(0, 50 * (index // 20 + 1), 28)[:, None, None]
        Image.fromarray((ramp + rng.integers(0, 50, (28, 28, 3))).astype(np.uint8)).save(place)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7)
    Dinov2Model(config).save_pretrained(made / "dinov2")
    size = {"height": 28, "width": 28}
    BitImageProcessor(size={"shortest_edge": 28}, crop_size=size).save_pretrained(made / "dinov2")
    return made


@pytest.mark.slow
def test_the_code_of_the_page_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for name in ("labelled", "new_photos"):
        (folder / name).symlink_to("photos")
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    code = re.sub(r"steps=\d+", "steps=2", "\n".join(blocks))
    names: dict[str, object] = {}
    exec(code, names)
    assert (folder / "predictions.csv").read_text().count("\n") == 81
    assert names["page"] == Path("runs/photos/report.html")


def test_the_page_has_every_argument() -> None:
    rows = dict(re.findall(r"^\| `(\w+)\((.*?)\)` \|", PAGE, re.MULTILINE))
    assert rows.keys() == {*pantomim.__all__} - {"__version__"}
    for name, arguments in rows.items():
        assert arguments.split(", ") == [*inspect.signature(getattr(pantomim, name)).parameters], name


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the kernel's own
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path: Path, folder: Path) -> None:
    book = nbformat.read(path, 4)
    cell = next(cell for cell in book.cells if "parameters" in cell.metadata.get("tags", ()))
    names = [line.partition(" = ")[0] for line in cell.source.splitlines() if not line.startswith(" ")]
    own = PARAMETERS | {"OUT": f"runs/{path.stem}"}
    given: dict[str, object] = {}
    exec(cell.source, given)  # what a reader would have
    extra = given.get("SETTINGS", {})
    assert isinstance(extra, dict)
    own["SETTINGS"] = extra | SMALL
    cell.source = "\n".join(f"{name} = {own[name]!r}" for name in names)
    NotebookClient(book, timeout=240, resources={"metadata": {"path": str(folder)}}).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_stored_is_light_and_from_a_whole_run(path: Path) -> None:
    book = nbformat.read(path, 4)
    nbformat.validate(book)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    text = path.read_text()
    assert len(text) < 300_000
    assert not [place for place in ("/home/", "/work/", "/tmp/", "/Users/") if place in text]
