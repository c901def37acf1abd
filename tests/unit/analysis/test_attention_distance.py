"""How far heads look: values that can be worked out by hand, and a sum written out."""

import math

import pytest
import torch

from pantomim.analysis.attention_distance import attention_distance, patch_distances


def reach(attention, grid=(14, 14), patch=(16, 16), num_prefix=1):
    return attention_distance(attention, patch_distances(grid, patch), num_prefix)


def uniform(num_tokens):
    return torch.full((1, 1, num_tokens, num_tokens), 1 / num_tokens)


def test_uniform_attention():
    assert reach(uniform(197)).distance.item() == pytest.approx(115.90, abs=0.005)
    assert reach(uniform(196), num_prefix=0).distance.item() == pytest.approx(116.49, abs=0.005)
    assert reach(uniform(257), grid=(16, 16), patch=(14, 14)).distance.item() == pytest.approx(116.11, abs=0.005)


def test_attention_to_oneself_and_to_the_class_token():
    assert reach(torch.eye(197)[None, None]).distance.item() == 0
    to_class = torch.zeros(1, 1, 197, 197)
    to_class[..., 0] = 1
    assert reach(to_class).distance.item() == 0
    assert reach(to_class).prefix_share.item() == 1


def test_the_class_token_as_a_query_counts_for_nothing():
    attention = torch.rand(2, 3, 13, 13).softmax(dim=-1)
    other = attention.clone()
    other[:, :, 0] = other[:, :, 0].flip(-1)
    assert torch.equal(reach(attention, (3, 4), (4, 4)).distance, reach(other, (3, 4), (4, 4)).distance)


@pytest.mark.parametrize("num_prefix", [0, 1, 3])
def test_the_sum_written_out(num_prefix):
    rows, cols, height, width = 2, 3, 4, 5
    count = num_prefix + rows * cols
    attention = torch.rand(2, 2, count, count, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
    found = reach(attention, (rows, cols), (height, width), num_prefix)
    for image in range(2):
        for head in range(2):
            total = 0.0
            for i in range(rows * cols):
                for j in range(rows * cols):
                    apart = math.hypot(height * (i // cols - j // cols), width * (i % cols - j % cols))
                    total += attention[image, head, num_prefix + i, num_prefix + j].item() * apart
            assert found.distance[image, head].item() == pytest.approx(total / (rows * cols), rel=1e-6)
    assert found.distance.dtype == torch.float64


def test_another_number_of_tokens_is_refused():
    with pytest.raises(ValueError, match="1 prefix tokens and 196 patches; got 196 tokens"):
        reach(uniform(196))
