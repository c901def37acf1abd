"""`pantomim masks`, as a user types it: a page and a picture, or one clear sentence."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pantomim.cli import main
from pantomim.masking.bank import write_bank

QUICK = ["--grid", "6x8", "--draws", "60"]


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    write_bank(tmp_path / "my_noise.npz", torch.rand(4, 32, 32, generator=torch.Generator().manual_seed(0)))
    return tmp_path / "my_noise.npz"


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["masks", *arguments])
    assert ended.value.code == 2
    said = capsys.readouterr()
    return " ".join((said.err + said.out).split())


def test_strategies_a_bank_and_a_picture(tmp_path: Path, bank: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.full((40, 50, 3), 120, dtype=np.uint8)).save(tmp_path / "photo.jpg")
    out = tmp_path / "new" / "masks.html"
    main(["masks", "random", "block", "inverse_block", "--bank", str(bank), "--image", str(tmp_path / "photo.jpg"),
          "--samples", "2", "--out", str(out), *QUICK])  # fmt: skip
    assert str(out) in "".join(capsys.readouterr().out.split("\n"))
    page = out.read_text(encoding="utf-8")
    for name in ("random", "block", "inverse_block", "my_noise"):
        assert re.search(rf"<h2>.*{name}</h2>", page), name
    assert page.count('class="veil"') == 4 * 2
    assert not re.search(r"https?://|@import|<script|url\((?!data:)", page)
    assert f"--grid 6x8 --ratio 0.75 --draws 60 --samples 2 --seed 0 --bank {bank}" in page
    with Image.open(out.with_suffix(".png")) as picture:
        assert min(picture.size) > 500


def test_a_bank_alone_and_the_same_seed_the_same_page(tmp_path: Path, bank: Path) -> None:
    for name in ("a", "b"):
        main(["masks", "--bank", str(bank), "--out", str(tmp_path / f"{name}.html"), *QUICK])
    text = (tmp_path / "a.html").read_text()
    assert text == (tmp_path / "b.html").read_text()
    assert text.count("<article") == 1


def test_what_cannot_be_shown_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "masks.html")]
    assert "Did you mean inverse_block? There are random," in fails(capsys, "inverse_blok", *out)
    assert "--grid must be ROWSxCOLUMNS; got 14." in fails(capsys, "random", "--grid", "14", *out)
    assert "RandomMasker.ratio must be in (0, 1); got 75" in fails(capsys, "random", "--ratio", "75", *out)
    assert "at least one visible" in fails(capsys, "random", "--grid", "1x2", "--ratio", "0.9", *out)
    assert "--samples must be from 1 to draws" in fails(capsys, "random", "--samples", "0", *out)
    assert "--out must end in .html" in fails(capsys, "random", "--out", str(tmp_path / "masks.png"))
    assert "--image must be a readable picture" in fails(capsys, "random", "--image", str(tmp_path / "no.jpg"), *out)
    assert "ColorNoiseMasker.bank must be readable" in fails(capsys, "--bank", str(tmp_path / "no.npz"), *out)
    assert not list(tmp_path.iterdir())
