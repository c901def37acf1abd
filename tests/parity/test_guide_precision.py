"""The benchmark of guides in bfloat16: its parts are the teacher, and its numbers are what they say."""

from argparse import Namespace

import pytest
import torch
from benchmark_scripts import benchmark
from tiny import ENCODER

from pantomim.masking.attention import AttentionMasker


@pytest.fixture(scope="module")
def precision():
    """The benchmark as a module."""
    return benchmark("guide_precision")


@pytest.mark.parametrize("query", ["class", "mean"])
def test_float32_agrees_with_itself_and_bfloat16_nearly(precision, query) -> None:
    torch.manual_seed(0)
    encoder, images = ENCODER.build().eval(), torch.rand(16, 3, 16, 16)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight += 0.2 * torch.randn(weight.shape)
    ways = precision.ways_of(encoder, torch.device("cpu"), images)  # checks that its parts are the teacher
    options = Namespace(grid=(4, 4), seed=0, batch_size=8, device="cpu")
    masker = AttentionMasker(ratio=0.5)
    found = precision.compare(ways, images, query, masker, options)
    assert list(found) == list(ways)[1:]
    for numbers in found.values():
        assert 0 < numbers["score_largest"] < 0.2
        assert 0 < numbers["features"] < 0.05
        assert 0.5 < numbers["agree"] <= 1
    same = precision.compare({"float32": ways["float32"], "again": ways["float32"]}, images, query, masker, options)
    assert same["again"]["agree"] == same["again"]["same"] == 1
    assert same["again"]["score_largest"] == same["again"]["features"] == 0
