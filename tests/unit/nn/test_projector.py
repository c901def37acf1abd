"""Projection heads: layers and sizes; batch norm equal to torch's, in one process and over two."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from pantomim.nn.projector import BatchNorm, Projector


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_is_torchs(affine: bool) -> None:
    ours, theirs = BatchNorm(4, affine).double(), nn.BatchNorm1d(4, affine=affine).double()
    if affine:
        with torch.no_grad():
            for norm in (ours, theirs):
                norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
                norm.bias.copy_(torch.tensor([0.0, 1.0, 0.0, -1.0]))
    for _ in range(3):
        vectors = 3 * torch.randn(7, 4, dtype=torch.float64) + 1
        assert torch.equal(ours(vectors), theirs(vectors))
    assert torch.equal(ours.running_mean, theirs.running_mean)
    assert torch.equal(ours.running_var, theirs.running_var)
    ours.eval(), theirs.eval()
    assert torch.equal(ours(vectors[:1]), theirs(vectors[:1]))


def test_a_single_image_has_no_statistics() -> None:
    with pytest.raises(ValueError, match=r"BatchNorm\.vectors must be at least two"):
        BatchNorm(4)(torch.randn(1, 4))


@pytest.mark.parametrize(("layers", "parameters"), [(3, 8 * 16 + 16 * 16 + 16 * 5 + 2 * 32), (2, 8 * 16 + 16 * 5 + 32)])
def test_layers(layers: int, parameters: int) -> None:
    head = Projector(8, 16, 5, layers)
    assert sum(parameter.numel() for parameter in head.parameters()) == parameters
    out = head(torch.randn(64, 8))
    assert out.shape == (64, 5)
    torch.testing.assert_close(out.mean(dim=0), torch.zeros(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.var(dim=0, correction=0), torch.ones(5), rtol=0, atol=1e-2)


def test_a_head_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Projector\.layers must be at least 1"):
        Projector(8, 16, 5, 0)


TWO = """
import sys, torch, torch.distributed as dist
from pantomim.nn.processes import first_row, rows_of_all
from pantomim.nn.projector import BatchNorm

torch.set_num_threads(1)
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
vectors = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
norm, whole = BatchNorm(4).double(), torch.nn.BatchNorm1d(4).double()
rows = slice(3 * rank, 3 * rank + 3)
assert first_row(3) == 3 * rank
assert torch.equal(rows_of_all(vectors[rows]), vectors)
ours, theirs = (vectors.clone().requires_grad_() for _ in range(2))
mine, all_rows = norm(ours[rows]), whole(theirs)
torch.testing.assert_close(mine, all_rows[rows])
torch.testing.assert_close(norm.running_mean, whole.running_mean)
torch.testing.assert_close(norm.running_var, whole.running_var)
(mine.square() * weight[rows]).sum().backward()  # each process has its part of the loss
(all_rows.square() * weight).sum().backward()
torch.testing.assert_close(ours.grad[rows], theirs.grad[rows])
assert not ours.grad[3 - 3 * rank : 6 - 3 * rank].any()
dist.all_reduce(norm.weight.grad)
torch.testing.assert_close(norm.weight.grad, whole.weight.grad)
dist.destroy_process_group()
print("equal")
"""


@pytest.mark.slow
def test_two_processes_normalise_as_one(tmp_path) -> None:
    command = [sys.executable, "-c", TWO]
    running = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "meet")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for process in running:
        out, errors = process.communicate(timeout=120)
        assert out.strip() == "equal", errors
