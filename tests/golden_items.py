"""Golden items for tests: where they lie, what becomes of them, and copies in which something is changed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import nn

from pantomim.parity.verification import ItemResult, verify_item

GOLDEN = Path(__file__).parent / "parity" / "golden"
SHARED = Path(__file__).parents[1] / ".." / "shared" / "golden"
needs_all = pytest.mark.skipif(not SHARED.is_dir(), reason="the whole collection is not beside this repository")


def path_of(name: str) -> Path:
    """An item's JSON file, in the selection that comes with the source or else in the whole collection."""
    folder = GOLDEN if (GOLDEN / f"{name}.json").is_file() else SHARED
    if not folder.is_dir():
        pytest.skip("the whole collection is not beside this repository")
    return folder / f"{name}.json"


def outcome(name: str) -> ItemResult:
    """The result of `verify` for an item."""
    return verify_item(path_of(name))


def failing(name: str) -> ItemResult:
    """The same of an item whose numbers must differ; an exception is no finding."""
    result = outcome(name)
    assert result.status == "FAIL"
    assert result.compared > 0, result.worst
    return result


def other_norm_eps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer norm of a vision transformer adds 1e-5 to the variance, not 1e-6."""
    made = nn.LayerNorm.__init__

    def make(norm: nn.LayerNorm, *sizes: Any, eps: float = 1e-5, **options: Any) -> None:
        made(norm, *sizes, eps=1e-5 if eps == 1e-6 else eps, **options)

    monkeypatch.setattr(nn.LayerNorm, "__init__", make)


def mutations(**table: tuple[Any, ...]) -> pytest.MarkDecorator:
    """One thing broken at a time: (item, owner, name of what is replaced, replacement), by what is wrong then."""
    return pytest.mark.parametrize(("item", "owner", "name", "wrong"), table.values(), ids=table.keys())


def edited(folder: Path, name: str, edit: Callable[[dict[str, Any], dict[str, Any]], Any]) -> ItemResult:
    """The result of `verify` for an item whose JSON or tensors were edited."""
    source = path_of(name)
    spec, tensors = json.loads(source.read_text()), load_file(source.with_suffix(".safetensors"))
    edit(spec, tensors)
    (folder / f"{name}.json").write_text(json.dumps(spec))
    save_file(tensors, folder / f"{name}.safetensors")
    return verify_item(folder / f"{name}.json")


def with_config(folder: Path, name: str, **changes: Any) -> ItemResult:
    """The same of an item whose `config` states something else; None: it no longer states it."""

    def edit(spec: dict[str, Any], tensors: dict[str, Any]) -> None:
        merged = {**spec["config"], **changes}
        spec["config"] = {key: value for key, value in merged.items() if value is not None}

    return edited(folder, name, edit)
