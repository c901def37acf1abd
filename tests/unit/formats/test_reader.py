import argparse
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pantomim.formats.reader import read_weights

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2])}
LEGACY = {"_use_new_zipfile_serialization": False}


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (Path(self.target),)


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
    with pytest.raises(ValueError, match=r"got a pickle that calls (pathlib\.Path\.touch|getattr)") as error:
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
        ([1, 2], "must map names to tensors; got list"),
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


def test_the_allow_list_is_not_left_behind(tmp_path):
    torch.save({"model": WEIGHTS, "args": argparse.Namespace()}, tmp_path / "w.pth")
    read_weights(tmp_path / "w.pth")
    assert argparse.Namespace not in torch.serialization.get_safe_globals()
