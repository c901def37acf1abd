import errno
import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pantomim.checkpoint import (
    OPTIMIZER,
    WEIGHTS,
    CheckpointError,
    Progress,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)


def trained(steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8))
    named = list(module.named_parameters())
    groups = [
        {"params": [p for n, p in named if p.ndim == d], "param_names": [n for n, p in named if p.ndim == d]}
        for d in (1, 2)
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.1, fused=True)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
    return module, optimizer


def save(folder: Path, step: int) -> Path:
    return save_checkpoint(folder, *trained(step), step=step, seed=7, progress=Progress(1.5), keep=2)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_resumed_training_equals_uninterrupted_training(tmp_path: Path) -> None:
    save(tmp_path, 3)
    found = find_checkpoint(tmp_path)
    assert (found.step, found.progress) == (3, Progress(1.5))
    module, optimizer = trained(0)
    load_checkpoint(found, module, optimizer)
    expected, expected_optimizer = trained(3)
    for m, o in ((module, optimizer), (expected, expected_optimizer)):
        o.zero_grad()
        m(torch.ones(5, 4)).square().sum().backward()
        o.step()
    for name, value in expected.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]


def test_later_checkpoints_of_an_abandoned_continuation_are_removed(tmp_path: Path) -> None:
    for step in (2, 9, 3):
        save(tmp_path, step)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]


def test_the_remains_of_a_killed_save_are_ignored_and_removed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".step-00000002.tmp").mkdir()
    (tmp_path / ".step-00000002.tmp" / WEIGHTS).write_bytes(b"half")
    assert find_checkpoint(tmp_path).step == 1
    save(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def disk_full(tensors: dict[str, Tensor], path: Path) -> None:
    if path.name == OPTIMIZER:
        raise OSError(errno.ENOSPC, "No space left on device")
    path.write_bytes(b"")


def test_a_full_disk_leaves_the_earlier_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr("pantomim.checkpoint.save_file", disk_full)
    with pytest.raises(CheckpointError, match=r"step 2 could not be .*No space left.* step 1 is untouched.*Make room"):
        save(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001"]
    assert find_checkpoint(tmp_path).step == 1


def test_a_write_that_the_system_refuses_is_told_in_the_same_way(tmp_path: Path) -> None:
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(CheckpointError, match=r"File too large.*step 1 is untouched"):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step-00000001"]


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "description"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1)
    file = save(tmp_path, 2) / WEIGHTS
    data = file.read_bytes()
    if damage == "cut":
        file.write_bytes(data[:-10])
    elif damage == "changed":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "missing":
        file.unlink()
    else:
        (file.parent / "checkpoint.json").write_text('{"format_version": 2, "st')
    with pytest.warns(UserWarning, match=r"step-00000002.*from the checkpoint before, step 1"):
        assert find_checkpoint(tmp_path).step == 1


def test_with_every_checkpoint_damaged_nothing_is_loaded(tmp_path: Path) -> None:
    (save(tmp_path, 2) / WEIGHTS).write_bytes(b"")
    with pytest.raises(
        CheckpointError,
        match=r"at least one whole checkpoint.*step-00000002.*must have the size and hash.*; got .*'bytes': 0",
    ):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize(("version", "age"), [(99, "a newer"), (1, "an older")])
def test_another_format_is_refused(tmp_path: Path, version: int, age: str) -> None:
    file = save(tmp_path, 2) / "checkpoint.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": version}))
    with pytest.raises(CheckpointError, match=f"must be 2; got {version}, of {age} pantomim"):
        find_checkpoint(tmp_path)


def test_the_state_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path, 2)
    found = find_checkpoint(tmp_path)
    other = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(other.named_parameters())
    with pytest.raises(ValueError, match=r"2\.weight"):
        load_checkpoint(found, other, optimizer)


def test_nothing_there_is_no_error(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path / "checkpoints") is None


class Guided(nn.Module):
    """Something learned, beside something that never changes."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.learned = nn.Linear(2, 2)
        self.guide = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).requires_grad_(False)
        self.guide.register_buffer("table", torch.full((3,), value), persistent=False)
        self.guide.frozen = True


def guided(value: float = 1.0) -> tuple[Guided, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = Guided(value)
    named = [(name, weight) for name, weight in module.named_parameters() if weight.requires_grad]
    return module, torch.optim.AdamW(named, lr=0.1)


def test_what_never_changes_is_kept_as_a_hash_alone(tmp_path: Path) -> None:
    module, optimizer = guided()
    path = save_checkpoint(tmp_path, module, optimizer, step=1, seed=0, progress=Progress(), keep=1)
    assert set(load_file(path / WEIGHTS)) == {"learned.weight", "learned.bias"}
    found = find_checkpoint(tmp_path)
    assert list(found.frozen) == ["guide"]
    other, optimizer = guided()
    with torch.no_grad():
        other.learned.weight.zero_()
    load_checkpoint(found, other, optimizer)
    assert torch.equal(other.learned.weight, module.learned.weight)


@pytest.mark.parametrize("change", ["table", "weight", "gone"])
def test_a_checkpoint_is_refused_beside_another_guide(tmp_path: Path, change: str) -> None:
    save_checkpoint(tmp_path, *guided(), step=1, seed=0, progress=Progress(), keep=1)
    found = find_checkpoint(tmp_path)
    other, optimizer = guided(2.0 if change == "table" else 1.0)
    if change == "weight":
        other.guide[0].weight[0, 0] += 1e-6
    if change == "gone":
        other.guide = nn.Identity()
    with pytest.raises(ValueError, match=r"got another guide \(\w{4,12} instead of \w{12}\).*Put the files back"):
        load_checkpoint(found, other, optimizer)


def test_a_moving_average_is_kept_whatever_it_is_made_of(tmp_path: Path) -> None:
    module, optimizer = guided()
    average = nn.Sequential(nn.Linear(2, 2).requires_grad_(False))
    average.frozen, average[0].frozen = False, True
    module.average = average
    path = save_checkpoint(tmp_path, module, optimizer, step=1, seed=0, progress=Progress(), keep=1)
    assert {"average.0.weight", "average.0.bias"} < set(load_file(path / WEIGHTS))
