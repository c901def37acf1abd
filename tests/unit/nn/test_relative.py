import numpy as np
import pytest
import torch

from pantomim.nn.relative import (
    RelativeBias,
    growing_offsets,
    index_of,
    num_relative_rows,
    relative_bias,
    relative_index,
    resize_relative_table,
)


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("grid", [(3, 5), (4, 4), (1, 6)])
def test_a_pair_has_the_row_of_its_offset_query_minus_key(grid, class_token):
    index = relative_index(grid, class_token)
    prefix, (rows, cols) = int(class_token), grid
    assert index.shape == (rows * cols + prefix,) * 2
    for query, key in np.ndindex(rows * cols, rows * cols):
        (i, j), (k, m) = divmod(query, cols), divmod(key, cols)
        expected = (i - k + rows - 1) * (2 * cols - 1) + (j - m + cols - 1)
        assert index[query + prefix, key + prefix] == expected
    assert len(index.unique()) == num_relative_rows(grid, class_token)


def test_the_class_token_has_the_last_three_rows():
    index = relative_index((3, 5), class_token=True)
    rows = num_relative_rows((3, 5), class_token=True)
    assert rows == 5 * 9 + 3
    assert set(index[0, 1:].tolist()) == {rows - 3}
    assert set(index[1:, 0].tolist()) == {rows - 2}
    assert index[0, 0] == rows - 1


def test_the_pairs_of_some_patches():
    index = relative_index((2, 3), class_token=True)
    ids = torch.tensor([[4, 0], [1, 5]])
    found = index_of(index, ids, num_prefix=1)
    for image, kept in enumerate(ids.tolist()):
        places = [0, *(patch + 1 for patch in kept)]
        assert torch.equal(found[image], index[places][:, places])


def test_every_head_has_its_column():
    table = RelativeBias(num_relative_rows((2, 2), True), heads=3)
    assert (table.relative_position_bias_table == 0).all()
    torch.nn.init.normal_(table.relative_position_bias_table)
    index = relative_index((2, 2), True).unsqueeze(0)
    bias = table(index)
    assert bias.shape == (1, 3, 5, 5)
    assert bias[0, 2, 1, 4] == table.relative_position_bias_table[index[0, 1, 4], 2]


def test_gradients_of_a_table_add_up_over_its_pairs():
    table = torch.zeros(num_relative_rows((2, 2), False), 1, requires_grad=True)
    relative_bias(table, relative_index((2, 2), False)).sum().backward()
    counts = relative_index((2, 2), False).flatten().bincount(minlength=9)
    assert torch.equal(table.grad[:, 0], counts.float())
    assert counts.tolist() == [1, 2, 1, 2, 4, 2, 1, 2, 1]


@pytest.mark.parametrize("to", [(3, 5), (5, 3), (3, 3), (6, 9), (1, 1)])
def test_another_grid_keeps_class_rows_and_constants(to):
    table = torch.randn(num_relative_rows((4, 3), True), 2, dtype=torch.float64)
    table[:-3] = torch.tensor([2.0, -1.0])
    resized = resize_relative_table(table, (4, 3), to)
    assert resized.dtype == torch.float64
    assert torch.equal(resized[-3:], table[-3:])
    torch.testing.assert_close(resized[:-3], table[:1].expand(len(resized) - 3, -1))
    assert len(resized) == num_relative_rows(to, True)


def test_the_same_grid_is_left_alone():
    table = torch.randn(num_relative_rows((4, 3), True), 2)
    assert resize_relative_table(table, (4, 3), (4, 3)) is table


def test_an_axis_that_stays_is_left_alone():
    table = torch.randn(num_relative_rows((4, 3), False), 2, dtype=torch.float64)
    tall = resize_relative_table(table, (4, 3), (6, 3)).view(11, 5, 2)
    middle = table.view(7, 5, 2)[3]
    torch.testing.assert_close(tall[5], middle)  # offset 0 is known
    torch.testing.assert_close(tall[[4, 6]], table.view(7, 5, 2)[[2, 4]])  # and so is offset 1
    torch.testing.assert_close(tall[[0, 10]], table.view(7, 5, 2)[[0, 6]])  # the farthest stay the farthest


def test_axes_are_not_mixed_up():
    rows = torch.arange(13, dtype=torch.float64).view(13, 1).expand(13, 9)
    resized = resize_relative_table(rows.reshape(117, 1), (7, 5), (9, 5)).view(17, 9)
    assert (resized.diff(dim=0) > 0).all()
    torch.testing.assert_close(resized, resized[:, :1].expand(-1, 9))


def test_beyond_the_last_known_offset_its_value_holds():
    offsets = growing_offsets(3, 63)  # at most 1, whatever the ratio
    assert offsets.tolist() == [-1.0, 0.0, 1.0]
    table = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64).unsqueeze(1)
    resized = resize_relative_table(table, (1, 2), (1, 6))[:, 0]
    assert torch.equal(resized[:5], torch.full((5,), 1.0, dtype=torch.float64))
    assert torch.equal(resized[6:], torch.full((5,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize(("grid", "ratio"), [(24, 1.0903), (32, 1.1349), (40, 1.1685)])
def test_growth_of_the_published_resolutions(grid, ratio):
    offsets = growing_offsets(27, 2 * grid - 1)
    assert offsets[15] - offsets[14] == pytest.approx(ratio, abs=5e-5)
    assert offsets[-1] == pytest.approx(grid - 1, abs=1e-3)


def test_a_table_of_another_grid_is_refused():
    with pytest.raises(ValueError, match=r"table must have 35 rows for a grid of 4x3, or 3 more .*; got 36"):
        resize_relative_table(torch.zeros(36, 2), (4, 3), (5, 5))
