import os

import pytest

from pantomim.core.files import check_out


@pytest.mark.parametrize("name", ["scores.json", "deep/er/scores.json"])
def test_a_file_that_can_be_written(tmp_path, name):
    check_out("Evaluate.out", tmp_path / name, [".json"])
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_out("Evaluate.out", type(tmp_path)("scores.json"), [".json"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scores.csv", r"Evaluate\.out must end in \.json or \.npz; got .*scores\.csv\. Give FILE\.json"),
        ("scores", r"must end in"),
        ("folder.json", r"Evaluate\.out must be a file; got the folder .*Give .*folder\.json.FILE\.json"),
        ("file/scores.json", r"Evaluate\.out must lie in a folder that can be written to"),
    ],
)
def test_a_file_that_cannot_be_written(tmp_path, name, message):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=message):
        check_out("Evaluate.out", tmp_path / name, [".json", ".npz"])


def test_a_folder_that_is_read_only(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write anywhere
    with pytest.raises(ValueError, match="can be written to"):
        check_out("Evaluate.out", tmp_path / "new" / "scores.json", [".json"])
