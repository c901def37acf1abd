"""The oldest layout of `torch.save`, read without running anything."""

import io
import pickle
import struct

import pytest
import torch

from pantomim.formats.legacy import HEAD, VERSION, is_legacy, read_legacy, resolved

SIZES = {"little_endian": True, "protocol_version": 1001, "type_sizes": {}}
LEGACY = {"_use_new_zipfile_serialization": False}
VALUES = struct.pack("<q2f", 2, 1.0, 2.0)


def test_tensors_as_torch_reads_them(tmp_path):
    base = torch.arange(12.0)
    content = {
        "whole": base,
        "view": base.view(3, 4).T[1:],
        "half": torch.ones(2).half(),
        "long": torch.tensor([1, -2]),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
    }
    torch.save(content, tmp_path / "w.pth", **LEGACY)
    assert is_legacy(tmp_path / "w.pth")
    found = resolved(read_legacy(tmp_path / "w.pth", {}))
    expected = torch.load(tmp_path / "w.pth", weights_only=True)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_other_layouts_are_not_taken_for_it(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "zip.pth")
    assert not is_legacy(tmp_path / "zip.pth")
    (tmp_path / "empty").touch()
    assert not is_legacy(tmp_path / "empty")


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
    assert resolved(read_legacy(path, {}))["a"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"version": 7}, "another version"),
        ({"sizes": {"little_endian": False}}, "another version, or another order of bytes"),
        ({"values": struct.pack("<q2f", 3, 1.0, 2.0)}, "a storage of 3 values instead of 2"),
        ({"values": struct.pack("<q1f", 2, 1.0)}, "the end of the file too early"),
        ({"keys": ("1",)}, "KeyError"),
    ],
)
def test_damage(tmp_path, options, match):
    path = write(tmp_path / "w", {"a": View(storage(), 0, (2,), (1,))}, **options)
    with pytest.raises(ValueError, match=f"must be a whole safetensors file or torch checkpoint; got .*{match}"):
        read_legacy(path, {})


@pytest.mark.parametrize("held", [storage(kind="shared"), storage(view=("x", 0, 1))], ids=["shared", "view"])
def test_storages_of_another_sort(tmp_path, held):
    with pytest.raises(ValueError, match="of another sort"):
        read_legacy(write(tmp_path / "w", {"a": View(held, 0, (2,), (1,))}), {})


@pytest.mark.parametrize(
    ("view", "keys", "match"),
    [
        (View(storage(), 0, (3,), (1,)), ("0",), "reaches beyond"),
        (View(storage(), 1, (2,), (1,)), ("0",), "reaches beyond"),
        (View(storage(), -1, (1,), (1,)), ("0",), "reaches beyond"),
        (View(storage(), 0, (2,), (1,)), (), "no values for storage 0"),
    ],
    ids=["too long", "too late", "too early", "no values"],
)
def test_tensors_outside_their_storage(tmp_path, view, keys, match):
    content = read_legacy(write(tmp_path / "w", {"a": view}, keys=keys), {})
    with pytest.raises(ValueError, match=match):
        resolved(content)


@pytest.mark.parametrize("called", [print, eval, getattr, torch.load, torch.storage._load_from_bytes])
def test_nothing_else_is_named(tmp_path, called, capsys):
    class Call:
        def __reduce__(self):
            return called, ("1",)

    with pytest.raises(ValueError, match=r"got a pickle that calls .*\. It was not executed"):
        read_legacy(write(tmp_path / "w", {"a": Call()}), {})
    assert capsys.readouterr().out == ""
