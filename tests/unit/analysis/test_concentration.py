"""Shares of singular values: values that are known, and the decomposition of one image by NumPy."""

import numpy as np
import pytest
import torch

from pantomim.analysis.spectrum import concentration


def test_tokens_that_all_point_one_way():
    tokens = torch.rand(3, 1, 7) * (1 + torch.rand(3, 10, 1))
    assert torch.allclose(concentration(tokens), torch.ones(3, 5, dtype=torch.float64), atol=1e-6)


def test_tokens_at_right_angles():
    tokens = torch.linalg.qr(torch.randn(200, 196, dtype=torch.float64)).Q.T[None]
    expected = torch.arange(1, 6, dtype=torch.float64) / 196
    assert torch.allclose(concentration(3 * tokens)[0], expected)
    assert concentration(tokens)[0, [0, 4]].tolist() == pytest.approx([0.0051, 0.0255], abs=5e-5)


def test_noise():
    tokens = torch.randn(2, 196, 768, generator=torch.Generator().manual_seed(0))
    expected = [0.0079, 0.0157, 0.0234, 0.0311, 0.0387]
    assert concentration(tokens).mean(dim=0).tolist() == pytest.approx(expected, rel=0.012)  # the specification rounds


def test_one_image_by_numpy():
    tokens = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(1)) + 1
    unit = tokens[1].double().numpy()
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    values = np.linalg.svd(unit, compute_uv=False)
    assert concentration(tokens)[1].numpy() == pytest.approx(values.cumsum()[:5] / values.sum())


def test_fewer_singular_values_than_asked_for():
    found = concentration(torch.randn(1, 3, 8))
    assert found.shape == (1, 5)
    assert found[0, 2:].tolist() == pytest.approx([1.0] * 3)
    assert found[0, 1] < 1


def test_lengths_of_tokens_do_not_matter():
    tokens = torch.randn(1, 6, 9, dtype=torch.float64)
    longer = tokens * torch.rand(1, 6, 1, dtype=torch.float64).add(0.1)
    assert torch.allclose(concentration(tokens), concentration(longer))
