"""Files that anyone may have made: read as torch reads them, and never executed."""

import argparse
import io
import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from foreign_files import Bomb
from safetensors.torch import save_file

from pantomim.formats.reader import HEAD, VERSION, read_content, read_weights

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2])}
LEGACY = {"_use_new_zipfile_serialization": False}


def assert_same(found):
    assert set(found) == set(WEIGHTS)
    for name, tensor in WEIGHTS.items():
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        OrderedDict(WEIGHTS),
        {"model": WEIGHTS},
        {"state_dict": WEIGHTS, "epoch": 3},
        {"model": {"state_dict": WEIGHTS}},
        {
            "model": WEIGHTS,
            "args": argparse.Namespace(lr=0.1, output_dir=Path("out"), betas=(0.9, 0.95)),
            "optimizer": {"state": {0: {"step": 1}}, "param_groups": [{"lr": 0.1}]},
            "scaler": {"scale": 65536.0},
        },
    ],
    ids=["plain", "ordered", "model", "state_dict", "both", "training"],
)
def test_checkpoints(tmp_path, content, options):
    torch.save(content, tmp_path / "weights.pth", **options)
    assert_same(read_weights(tmp_path / "weights.pth"))


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin"])
def test_safetensors_under_any_name(tmp_path, name):
    save_file(WEIGHTS, tmp_path / name)
    assert_same(read_weights(tmp_path / name))


def test_parameters_come_without_gradient(tmp_path):
    torch.save({"p": torch.nn.Parameter(torch.ones(2))}, tmp_path / "w.pth")
    assert not read_weights(tmp_path / "w.pth")["p"].requires_grad


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_code_is_refused_by_name_and_not_executed(tmp_path, options):
    canary = tmp_path / "canary"
    torch.save({"model": WEIGHTS, "hook": Bomb(canary)}, tmp_path / "evil.pth", **options)
    with pytest.raises(ValueError, match=r"got a pickle that calls (pathlib\.Path\.touch|\S*getattr)") as error:
        read_weights(tmp_path / "evil.pth")
    assert "was not executed" in str(error.value)
    assert not canary.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_a_bare_pickle_with_code_is_never_executed(tmp_path, protocol):
    canary = tmp_path / "canary"
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": Bomb(canary)}, protocol=protocol))
    with pytest.raises(ValueError, match=r"calls .*(touch|getattr)"):
        read_weights(tmp_path / "evil.pth")
    assert not canary.exists()


def test_blocked_modules_are_named_too(tmp_path):
    class System:
        def __reduce__(self):
            import os

            return os.system, ("touch canary",)

    torch.save([System()], tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"calls (posix|nt)\.system"):
        read_weights(tmp_path / "evil.pth")


@pytest.mark.parametrize("length", [0, 1, 8, 9, 40, 120, -30, -1])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files(tmp_path, kind, length):
    path = tmp_path / f"w.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save({"model": WEIGHTS}, path, **(LEGACY if kind == "legacy" else {}))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="must be a whole safetensors file or torch checkpoint"):
        read_weights(path)


@pytest.mark.parametrize("content", [b"\x00" * 200, b"hello, this is text\n" * 20, b"PK\x03\x04" + b"x" * 100])
def test_other_files(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ValueError, match="must be a whole safetensors file or torch checkpoint") as error:
        read_weights(tmp_path / "w.pth")
    assert "weights_only" not in str(error.value)  # torch advises to read it unsafely


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1, 2], "must map names to tensors.*; got list"),
        ({}, "got dict without entries"),
        ({"epoch": 3, "a": torch.ones(1)}, "other things under epoch"),
        ({"model": {"a": torch.ones(1), "meta": "x"}}, "other things under meta"),
    ],
)
def test_something_else_than_weights(tmp_path, content, match):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=match):
        read_weights(tmp_path / "w.pth")


def test_paths_that_are_no_file(tmp_path):
    with pytest.raises(ValueError, match="got nothing there"):
        read_weights(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="got a folder"):
        read_weights(tmp_path)


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_tensors_as_torch_reads_them(tmp_path, options):
    base = torch.arange(12.0)
    content = {
        "whole": base,
        "view": base.view(3, 4).T[1:],
        "half": torch.ones(2).half(),
        "bfloat16": torch.ones(2).bfloat16(),
        "long": torch.tensor([1, -2]),
        "bool": torch.tensor([True, False]),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3.5),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
    }
    content["parameter"].rule = "a parameter with an attribute"
    torch.save(content, tmp_path / "w.pth", **options)
    found, expected = read_content(tmp_path / "w.pth"), torch.load(tmp_path / "w.pth", weights_only=True)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


# The layout before torch 1.6, written by hand.
SIZES = {"little_endian": True, "protocol_version": 1001, "type_sizes": {}}
VALUES = struct.pack("<q2f", 2, 1.0, 2.0)


class Storage:
    """Refers to a storage, as torch does it."""

    def __init__(self, *pid):
        self.pid = pid


class View:
    def __init__(self, storage, offset, size, stride):
        self.arguments = (storage, offset, size, stride, False, None)

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


class Writer(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Storage) else None


def write(path, content, keys=("0",), values=VALUES, sizes=SIZES, version=VERSION):
    buffer = io.BytesIO()
    buffer.write(HEAD)
    for part in (version, sizes):
        buffer.write(pickle.dumps(part, protocol=2))
    Writer(buffer, protocol=2).dump(content)
    buffer.write(pickle.dumps(list(keys), protocol=2))
    buffer.write(values)
    path.write_bytes(buffer.getvalue())
    return path


def storage(length=2, *, kind="storage", view=None):
    return Storage(kind, torch.FloatStorage, "0", "cpu", length, view)


def test_a_file_made_by_hand(tmp_path):
    path = write(tmp_path / "w", {"a": View(storage(), 0, (2,), (1,))})
    assert read_weights(path)["a"].tolist() == [1.0, 2.0]


WHOLE = View(storage(), 0, (2,), (1,))


@pytest.mark.parametrize(
    ("held", "options", "match"),
    [
        (WHOLE, {"version": 7}, "another version"),
        (WHOLE, {"sizes": {"little_endian": False}}, "another version, or another order of bytes"),
        (WHOLE, {"values": struct.pack("<q2f", 3, 1.0, 2.0)}, "3 values in 8 bytes for a storage of 2"),
        (WHOLE, {"values": struct.pack("<q1f", 2, 1.0)}, "2 values in 4 bytes for a storage of 2 in 8"),
        (WHOLE, {"keys": ("1",)}, "KeyError"),
        (WHOLE, {"keys": ()}, "no values for storage 0"),
        (View(storage(kind="shared"), 0, (2,), (1,)), {}, "shared of an unknown type"),
        (View(storage(view=("x", 0, 1)), 0, (2,), (1,)), {}, "storage of an unknown type"),
        (View(storage(10**15), 0, (2,), (1,)), {}, "a storage of 1000000000000000 values in"),
        (View(storage(-1), 0, (2,), (1,)), {}, "a storage of -1 values in"),
        (View(storage(), 0, (3,), (1,)), {}, "reaches beyond"),
        (View(storage(), 1, (2,), (1,)), {}, "reaches beyond"),
        (View(storage(), -1, (1,), (1,)), {}, "reaches beyond"),
    ],
)
def test_damage(tmp_path, held, options, match):
    path = write(tmp_path / "w", {"a": held}, **options)
    with pytest.raises(ValueError, match=f"must be a whole safetensors file or torch checkpoint; got .*{match}"):
        read_weights(path)


@pytest.mark.parametrize("called", [print, eval, getattr, torch.load, torch.storage._load_from_bytes])
def test_nothing_else_is_named(tmp_path, called, capsys):
    class Call:
        def __reduce__(self):
            return called, ("1",)

    with pytest.raises(ValueError, match=r"got a pickle that calls .*\. It was not executed"):
        read_weights(write(tmp_path / "w", {"a": Call()}))
    assert capsys.readouterr().out == ""


def test_one_file_does_not_change_how_the_next_is_read(tmp_path):
    # sets an attribute of the class that stands in for a name
    (tmp_path / "set.pkl").write_bytes(
        b"\x80\x02cargparse\nNamespace\nN}X\x05\x00\x00\x00stateX\x03\x00\x00\x00set\x73\x86b."
    )
    with pytest.raises(ValueError, match="must be a whole"):
        read_content(tmp_path / "set.pkl")
    torch.save({"model": WEIGHTS, "args": argparse.Namespace(lr=0.5)}, tmp_path / "w.pth")
    arguments = read_content(tmp_path / "w.pth")["args"]
    assert arguments.state == {"lr": 0.5}
    assert not hasattr(type(arguments), "state")
