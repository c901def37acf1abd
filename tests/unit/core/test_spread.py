"""Figures of features against the papers' formulas, written out once more, and where the answer is known."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.stats import entropy

from pantomim.core.spread import COLLAPSED, alignment, effective_rank, relative_std, uniformity


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_figures_equal_a_reference(shape) -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=shape) @ np.diag(0.8 ** np.arange(shape[1])) + 0.5
    other = one + 0.1 * rng.normal(size=shape)
    eigenvalues = np.linalg.eigvalsh(one @ one.T if shape[0] < shape[1] else one.T @ one)
    shares = np.sqrt(eigenvalues) / np.sqrt(eigenvalues).sum() + 1e-7
    unit, unit_other = (table / np.linalg.norm(table, axis=1, keepdims=True) for table in (one, other))
    first, second = torch.from_numpy(one), torch.from_numpy(other)
    assert effective_rank(first) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
    assert effective_rank(first) == pytest.approx(np.exp(entropy(shares)), rel=1e-4)
    assert relative_std(first) == pytest.approx(np.sqrt(one.std(axis=0).__pow__(2).mean() / (one**2).mean()))
    assert alignment(first, second) == pytest.approx((np.linalg.norm(unit - unit_other, axis=1) ** 2).mean())
    assert uniformity(first) == pytest.approx(np.log(np.exp(-2 * pdist(unit) ** 2).mean()))


def test_known_spreads() -> None:
    same, axes = torch.ones(30, 8), torch.eye(8)
    assert effective_rank(same) == pytest.approx(1.0, abs=1e-4)
    assert effective_rank(axes) == pytest.approx(8.0, abs=1e-4)
    assert [relative_std(same), alignment(same, 3 * same), uniformity(same)] == pytest.approx([0, 0, 0], abs=1e-9)
    assert relative_std(same + 1e-3 * torch.randn(30, 8)) < COLLAPSED < relative_std(axes)
    assert alignment(same, -same) == pytest.approx(4.0)
