"""Errors of known kinds end in a message with file, cause and remedy; others in a report, and never in a traceback."""

import errno
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from classifier_folder import labelled, write_classifier
from foreign_files import official_weights
from safetensors import SafetensorError
from tiny import ENCODER, tiny_images, tiny_run

import pantomim.cli
from pantomim.cli import main
from pantomim.core.files import replace_file
from pantomim.core.reading import read_json
from pantomim.engine.pretrain import pretrain
from pantomim.engine.stops import MemoryFullError, NonFiniteError, WorkerError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, its images, a classifier, and a foreign checkpoint."""
    folder = tmp_path_factory.mktemp("made")
    source = tiny_images(folder / "tiny.npz")
    pretrain(tiny_run(source, steps=3), folder / "run")
    write_classifier(folder / "classes")
    labelled(folder / "new.npz", ("0", "1"), 8)
    torch.save({"model": official_weights(ENCODER.build())}, folder / "mae.pth")
    return folder


def ended(capsys, words):
    with pytest.raises(SystemExit) as end:
        main(words)
    found = capsys.readouterr()
    return end.value.code, " ".join((found.out + found.err).split())


COMMANDS = {
    "evaluate": ("evaluate knn --encoder {made}/run --data {made}/tiny.npz --out {out}/a.json", "a.json"),
    "report": ("report {made}/run --out {out}/b.html", "b.html"),
    "features": ("features --encoder {made}/run --data {made}/tiny.npz --out {out}/c.npz", "c.npz"),
    "inspect": ("inspect spectrum {made}/run --images {made}/tiny.npz --out {out}/d.html", "d."),
    "masks": ("masks random --draws 7 --samples 2 --out {out}/e.html", "e.html"),
    "encode": (
        "tokenizer encode --tokenizer random-projection --patch-size 4 --data {made}/tiny.npz --out {out}/f.npz",
        "f.npz",
    ),
    "noise": ("noise red --patterns 2 --side 16 --out {out}/g.npz", "g.npz"),
    "import": ("import {made}/mae.pth --format mae --heads 2 --image-size 16 16 --out {out}/h", "h/"),
    "predict": ("predict {made}/classes {made}/new.npz --out {out}/i.csv", "i.csv"),
    "pretrain": ("pretrain mae --data {made}/tiny.npz --size micro --steps 1 --runtime.device cpu --out {out}/j", "j"),
}


@pytest.mark.parametrize(
    ("command", "number", "remedy"),
    [
        *((command, errno.ENOSPC, "Make room") for command in COMMANDS),
        ("noise", errno.EACCES, "Get the permission"),
        ("noise", errno.EIO, "Check the disk"),
    ],
)
def test_a_file_that_cannot_be_written_is_named(made, tmp_path, capsys, monkeypatch, command, number, remedy):
    line, file = COMMANDS[command]
    monkeypatch.setenv("PANTOMIM_CACHE", str(made / "cache"))
    monkeypatch.chdir(tmp_path)

    def refuse(source, target):
        if str(target).startswith(str(tmp_path)):
            raise OSError(number, os.strerror(number))
        return rename(source, target)

    rename = os.replace
    monkeypatch.setattr(os, "replace", refuse)
    status, said = ended(capsys, line.format(made=made, out=tmp_path).split())
    assert status == 2
    assert str(tmp_path / file) in said
    assert os.strerror(number) in said
    assert remedy in said
    assert (number == errno.ENOSPC) == ("Make room" in said)
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.rglob("pantomim-error*"))


def test_the_cache_has_a_way_out(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PANTOMIM_CACHE", str(tmp_path / "file"))
    status, said = ended(capsys, ["noise", "red", "--patterns", "2", "--side", "16"])
    assert status == 2
    assert "set PANTOMIM_CACHE to another folder" in said


def read_cut_json(folder):
    (folder / "finished.json").touch()
    read_json(folder / "finished.json", dict, "Put it back.")


def read_latin1(folder):
    (folder / "list.txt").write_bytes("é".encode("latin-1"))
    (folder / "list.txt").read_text(encoding="utf-8")


def raising(error):
    def act(folder):
        raise error

    return act


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (read_cut_json, ["finished.json must hold what was written", "Put it back"]),
        (read_latin1, ["list.txt must be text in UTF-8", "Save it as UTF-8"]),
        (lambda folder: zipfile.ZipFile(Path(__file__)), ["must be whole", "get it again"]),
        (lambda folder: zlib.decompress(b"x"), ["must be whole", "get it again"]),
        (lambda folder: yaml.safe_load("["), ["must be whole", "get it again"]),
        (lambda folder: "\ud800".encode(), ["Names must be text in UTF-8", "Rename"]),
        (lambda folder: torch.empty(2**60, dtype=torch.uint8), ["Memory must hold", "fewer images"]),
        (raising(MemoryError()), ["Memory must hold", "fewer images"]),
        (raising(torch.OutOfMemoryError("CUDA out of memory")), ["CUDA out of memory", "fewer images"]),
        (raising(SafetensorError("I/O error: No space left on device (os error 28)")), ["No space left", "Make room"]),
        (raising(SafetensorError("Error while deserializing header")), ["deserializing", "get it again"]),
        (raising(RuntimeError("can't start new thread")), ["Threads", "ulimit -u"]),
        (raising(OSError(errno.EMFILE, "Too many open files")), ["Too many open files", "ulimit -n"]),
        (raising(WorkerError("A worker was killed.")), ["A worker was killed."]),
        (raising(NonFiniteError("The loss is NaN.")), ["The loss is NaN."]),
        (raising(MemoryFullError("Pretrain.batch_size is too large.")), ["--batch_size is too large."]),
    ],
)
def test_an_error_of_a_known_kind_is_one_message(act, words, capsys, monkeypatch, tmp_path):
    options = {"Pretrain.batch_size": "--batch_size"}
    monkeypatch.setitem(pantomim.cli.COMMANDS, "stats", lambda line: line.options.update(options) or act(tmp_path))
    monkeypatch.chdir(tmp_path)
    status, said = ended(capsys, ["stats", "x"])
    assert status == 2
    assert said.startswith("error: ")
    assert all(word in said for word in words), said
    assert not list(tmp_path.glob("pantomim-error*"))


@pytest.mark.parametrize(
    "act",
    [
        lambda folder: {}["key"],
        lambda folder: np.zeros(3).reshape(2, 2),
        lambda folder: 1 // 0,
        raising(RuntimeError("x")),
    ],
    ids=["KeyError", "a library's ValueError", "ZeroDivisionError", "RuntimeError"],
)
def test_any_other_error_leaves_a_report(act, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(pantomim.cli.COMMANDS, "stats", lambda line: act(tmp_path))
    monkeypatch.chdir(tmp_path)
    status, said = ended(capsys, ["stats", "some set"])
    (report,) = tmp_path.glob("pantomim-error-*.txt")
    assert status == 1
    assert report.name in said
    assert "Traceback" not in said
    text = report.read_text()
    assert "pantomim stats 'some set'" in text
    assert "Traceback" in text
    assert f"torch {torch.__version__.partition('+')[0]}" in text


def test_where_no_report_can_be_written_the_error_is_shown(monkeypatch):
    monkeypatch.setitem(pantomim.cli.COMMANDS, "stats", raising(KeyError("x")))
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: raising(OSError(errno.EROFS, "Read-only"))(None))
    with pytest.raises(KeyError):
        main(["stats", "x"])


def test_an_error_of_writing_is_of_its_kind_and_names_the_file(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "fsync", lambda handle: raising(OSError(errno.EACCES, "Permission denied"))(None))
    with pytest.raises(PermissionError) as raised:
        replace_file(tmp_path / "new.json", b"{}")
    assert raised.value.filename == str(tmp_path / "new.json")
    assert not list(tmp_path.iterdir())


def test_a_report_of_a_run_that_cannot_be_written_to(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: str(path).startswith(str(tmp_path)))  # root may write anywhere
    status, said = ended(capsys, ["report", str(made / "run")])
    assert status == 2
    assert "--out must lie in a folder that can be written to" in said
    main(["report", str(made / "run"), "--out", str(tmp_path / "page.html")])
    assert "<html" in (tmp_path / "page.html").read_text()
