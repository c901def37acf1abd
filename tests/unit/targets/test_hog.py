import math

import pytest
import torch

from pantomim.nn.vit import EncoderConfig
from pantomim.targets.hog import HOGTarget, HOGTargetConfig, gradients, hog_cell


def hog(patch_size: int, channels: int = 3, **settings) -> HOGTarget:
    return HOGTarget(HOGTargetConfig(**settings), patch_size, channels)


def ramp(angle: float, side: int = 32, channels: int = 1) -> torch.Tensor:
    """A plane that rises along one direction: the same gradient everywhere."""
    rows, cols = torch.meshgrid(torch.arange(side).double(), torch.arange(side).double(), indexing="ij")
    return (math.cos(angle) * cols + math.sin(angle) * rows).expand(1, channels, side, side)


def inner_bins(images: torch.Tensor) -> set[int]:
    """Bins in which a cell away from the border has anything."""
    cells = hog(16, images.shape[1]).histograms(images)[..., 1:-1, 1:-1]
    return {int(number) for number in cells.amax(dim=(0, 1, 3, 4)).gt(1e-9).nonzero()}


def step(horizontal: bool) -> torch.Tensor:
    image = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    image[..., 12:, :] = 1.0
    return image if horizontal else image.mT


def test_edges_fall_into_the_bins_of_their_direction() -> None:
    assert inner_bins(step(horizontal=False)) == {4}
    assert inner_bins(step(horizontal=True)) == {0}
    assert inner_bins(ramp(math.pi / 4)) == {2}
    assert inner_bins(ramp(-math.pi / 4)) == {6}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opposite_edges_share_a_bin_also_on_its_border(dtype: torch.dtype) -> None:
    for image in (step(horizontal=True), 1 - step(horizontal=True), ramp(0.0).mT, -ramp(0.0).mT):
        assert inner_bins(image.to(dtype)) == {0}
    assert inner_bins(ramp(-math.pi / 2 + 0.01)) == {8}  # slightly rotated: on one side of the border ...
    assert inner_bins(ramp(-math.pi / 2 - 0.01)) == {0}  # ... and on the other


def test_at_the_image_border_nothing_goes_across() -> None:
    across, down = gradients(torch.rand(1, 1, 16, 16))
    assert (across[..., [0, -1]] == 0).all()
    assert (down[..., [0, -1], :] == 0).all()


def test_flat_images_are_zero_and_all_other_histograms_have_length_1() -> None:
    target = hog(16)
    flat = target(torch.full((2, 3, 32, 32), 0.3))
    assert (flat == 0).all()
    found = target(torch.rand(2, 3, 32, 32)).reshape(2, 4, 3, 9, 2, 2)
    torch.testing.assert_close(found.norm(dim=3), torch.ones(2, 4, 3, 2, 2))


def test_what_is_added_to_or_multiplied_with_a_channel_changes_nothing() -> None:
    target, images = hog(16), torch.rand(2, 3, 32, 32, dtype=torch.float64)
    scale, offset = torch.tensor([0.2, 3.0, 7.0]).view(3, 1, 1), torch.tensor([-1.0, 0.5, 9.0]).view(3, 1, 1)
    torch.testing.assert_close(target(images * scale + offset), target(images))


def test_order_within_a_patch_is_channel_bin_row_column() -> None:
    images = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    images[0, 2] = 0.5
    images[0, 2, :, 21:] = 1.0  # a vertical edge in the right patches, in their left cells
    found = hog(16)(images).reshape(2, 2, 3, 9, 2, 2)
    assert found[:, 0].abs().max() == 0
    assert set(map(tuple, found[:, 1].nonzero()[:, 1:].tolist())) == {(2, 4, 0, 0), (2, 4, 1, 0)}


def test_shape_determinism_no_gradient_and_never_in_training_mode() -> None:
    encoder = EncoderConfig(
        image_size=(32, 48), width=16, depth=1, heads=2, in_chans=5, mean=(0.0,) * 5, std=(1.0,) * 5
    )
    target = HOGTargetConfig().build(encoder.build()).train()
    images = torch.rand(2, 5, 32, 48, requires_grad=True)
    found = target(images)
    assert found.shape == (2, 6, target.dim)
    assert target.dim == 5 * 9 * 4
    assert not found.requires_grad
    assert not target.training
    assert torch.equal(found, target(images))


def test_the_score_is_the_mean_square_over_masked_patches() -> None:
    target, images, ids = hog(16), torch.rand(2, 3, 32, 32), torch.tensor([[0, 3], [2, 1]])
    prediction = torch.randn(2, 2, 108)
    chosen = torch.stack([target(images)[row, ids[row]] for row in range(2)])
    torch.testing.assert_close(target.loss(prediction, chosen), (prediction - chosen).square().mean())


def test_half_precision_is_promoted_and_autocast_changes_nothing() -> None:
    target, images = hog(16), torch.rand(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(target(images), target(images.float()))
    assert target(images.bfloat16()).dtype == torch.float32


def test_cells_follow_the_patch_and_must_divide_it() -> None:
    assert [hog_cell(size) for size in (2, 4, 7, 8, 14, 16, 32)] == [2, 4, 7, 4, 7, 8, 16]
    with pytest.raises(ValueError, match=r"HOGTargetConfig\.cell must divide .* got 5\. Set method\.target\.cell to 8"):
        hog(16, cell=5)
    with pytest.raises(ValueError, match=r"HOGTarget\.window must divide"):
        hog(4, cell=4, window=16)(torch.rand(1, 3, 24, 24))
