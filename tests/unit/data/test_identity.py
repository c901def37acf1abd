"""What an image is known by: its name, its bytes, its class."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from image_files import fill, png

from pantomim.data.record import read_list, read_record
from pantomim.data.sources import open_source, place, read_contents


def packed(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def arrays(path: Path, files: dict[str, bytes]) -> Path:
    """The same as an .npz: the last byte of each file is a pixel."""
    images = np.stack([np.full((8, 8), data[-1] ^ data[40], np.uint8) for data in files.values()])
    np.savez(path, images=images, labels=np.array([name.split("/")[0] for name in files]))
    return path


@pytest.mark.parametrize("make", [fill, packed, arrays])
def test_another_image_of_the_same_size_is_another(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    files = {f"{'ab'[k % 2]}/{k}.png": png(k) for k in range(20)}
    suffix = {"fill": "data", "packed": "a.zip", "arrays": "a.npz"}[make.__name__]
    before = read_contents(str(make(tmp_path / suffix, files))).identity()
    assert read_contents(str(make(tmp_path / suffix, files))).identity().sha256 == before.sha256
    changed = bytearray(files["b/3.png"])
    changed[-1] ^= 1
    now = read_contents(str(make(tmp_path / suffix, files | {"b/3.png": bytes(changed)}))).identity()
    assert now.changes(before) == {"changed": ["3" if make is arrays else "b/3.png"]}


def test_sizes_are_asked_for_and_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {f"{k}.png": b"x" * (k + 1) for k in range(1000)})
    contents, opened = read_contents(str(tmp_path)), []
    monkeypatch.setattr("builtins.open", lambda file, *how: opened.append(file) or io.BytesIO(b"x"))
    found = contents.identity()
    assert [size & 0xFFFF for size in found.sizes] == [int(name[:-4]) + 1 for name in found.names]
    assert 20 < len(opened) < 130


def test_a_class_that_is_renamed_or_changed_is_named(tmp_path: Path) -> None:
    lines = [f"{k}.png {'ab'[k % 2]}" for k in range(20)]
    fill(tmp_path, {f"{k}.png": png(k) for k in range(20)})
    (tmp_path / "list.txt").write_text("\n".join(lines))
    before = open_source(str(tmp_path / "list.txt"), "all").identity()
    (tmp_path / "list.txt").write_text("\n".join(["0.png b", *lines[1:]]))
    assert open_source(str(tmp_path / "list.txt"), "all").identity().changes(before) == {"of another class": ["0.png"]}


def test_a_place_has_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    spellings = ["photos", "./photos/", "photos/../photos", str(tmp_path / "photos")]
    assert {place(spelling) for spelling in spellings} == {str((tmp_path / "photos").resolve())}
    assert [place(spec) for spec in ("mnist", "hf:a/b")] == ["mnist", "hf:a/b"]


def test_a_record_counts_once_there_is_a_step(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("{}")
    assert read_record(tmp_path) is None
    (tmp_path / "finished.json").touch()
    with pytest.raises(ValueError, match=r"data\.json must hold what was written to it; got source: Field required"):
        read_record(tmp_path)
    assert read_list(tmp_path) is None
