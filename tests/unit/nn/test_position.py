import numpy as np
import pytest
import torch

from pantomim.nn.position import name_table, sincos_2d


def test_sincos_is_the_formula() -> None:
    rows, cols, width = 3, 5, 8
    table = sincos_2d(width, (rows, cols), num_prefix=2).numpy()
    assert table.dtype == np.float64
    assert (table[:2] == 0).all()
    omega = 10000.0 ** -(np.arange(2) / 2)
    for row in range(rows):
        for col in range(cols):
            x, y = col * omega, row * omega
            expected = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)])
            np.testing.assert_allclose(table[2 + row * cols + col], expected, rtol=0, atol=1e-15)


def test_width_must_be_a_multiple_of_four() -> None:
    with pytest.raises(ValueError, match="width must be a multiple of 4; got 6"):
        sincos_2d(6, (2, 2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tables_are_told_apart(dtype: torch.dtype) -> None:
    grid = (3, 5)
    table = sincos_2d(16, grid, 1)[None]
    assert name_table(table.to(dtype), grid, 1) == "sincos, columns first"
    rows_first = torch.cat([table[..., 8:], table[..., :8]], dim=-1)
    assert name_table(rows_first.to(dtype), grid, 1) == "sincos, rows first"
    moved = table.clone()
    moved[0, 4, 2] += 0.02
    assert name_table(moved.to(dtype), grid, 1) == "other"
    assert name_table(torch.zeros(1, 16, 6, dtype=dtype), grid, 1) == "other"
