import numpy as np
import pytest
import torch

from pantomim.nn.relative import RelativeBias, index_of, num_relative_rows, relative_bias, relative_index


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
