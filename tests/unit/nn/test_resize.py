from dataclasses import replace

import pytest
import torch

from pantomim.nn.relative import num_relative_rows
from pantomim.nn.resize import adapted_encoder, growing_offsets, resample, resize_relative_table
from pantomim.nn.vit import EncoderConfig


@pytest.mark.parametrize("relative", ["shared", "blocks"])
def test_another_image_size_resizes_every_table(relative: str) -> None:
    torch.manual_seed(0)
    size = {"image_size": (12, 20), "patch_size": 4, "width": 16, "depth": 2, "heads": 2}
    encoder = EncoderConfig(**size, position="learned", relative_position=relative).build().double()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter)
    resized = adapted_encoder(encoder, replace(encoder.config, image_size=(24, 24)))
    assert resized(torch.rand(1, 3, 24, 24, dtype=torch.float64)).patches.shape == (1, 36, 16)
    same = adapted_encoder(encoder, encoder.config).state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in encoder.state_dict().items())


def test_resample_keeps_prefix_and_the_same_grid() -> None:
    table = torch.rand(1, 2 + 6, 4)
    assert resample(table, (2, 3), (2, 3), 2) is table
    resized = resample(table, (2, 3), (4, 5), 2)
    assert resized.shape == (1, 2 + 20, 4)
    assert torch.equal(resized[:, :2], table[:, :2])


def test_resample_knows_rows_from_columns() -> None:
    """A table that grows along the rows only still does so on another grid."""
    by_row = torch.arange(4.0).repeat_interleave(3).reshape(1, 12, 1)
    resized = resample(by_row, (4, 3), (6, 5), 0).reshape(6, 5)
    assert torch.allclose(resized, resized[:, :1].expand(-1, 5), atol=1e-6)
    assert (resized.diff(dim=0) > 0).all()


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
