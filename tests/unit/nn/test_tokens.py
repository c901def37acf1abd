import pytest
import torch

from pantomim.nn.tokens import patch_grid, patchify, put_back, standardise, take, unpatchify


def test_patchify_orders_row_column_channel() -> None:
    images = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6).double()
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 12)
    for patch, (row, col) in enumerate([(r, c) for r in range(2) for c in range(3)]):
        expected = [
            images[1, channel, 2 * row + r, 2 * col + c] for r in range(2) for c in range(2) for channel in range(3)
        ]
        assert patches[1, patch].tolist() == expected


def test_a_constant_red_channel_shows_with_period_three() -> None:
    images = torch.rand(1, 3, 8, 8)
    images[:, 0] = 7.0
    patches = patchify(images, 4)
    assert (patches[..., 0::3] == 7.0).all()
    assert (patches[..., 1::3] != 7.0).all()


@pytest.mark.parametrize(("channels", "height", "width", "size"), [(1, 8, 8, 4), (7, 6, 10, 2), (3, 15, 5, 5)])
def test_unpatchify_inverts_patchify(channels: int, height: int, width: int, size: int) -> None:
    images = torch.rand(2, channels, height, width)
    grid = (height // size, width // size)
    assert torch.equal(unpatchify(patchify(images, size), size, grid), images)


@pytest.mark.parametrize(
    ("image_size", "message"), [((30, 32), "a multiple of"), ((32, 30), "a multiple of"), ((8, 32), "at least")]
)
def test_sides_that_do_not_fit_are_refused(image_size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"image_size must be {message}.*got {image_size[0]}x{image_size[1]}"):
        patch_grid(image_size, 16)
    with pytest.raises(ValueError, match=message):
        patchify(torch.rand(1, 3, *image_size), 16)


def test_take_and_put_back_undo_each_other() -> None:
    tokens = torch.rand(3, 7, 5)
    ids = torch.stack([torch.randperm(7)[:4] for _ in range(3)])
    taken = take(tokens, ids)
    for image in range(3):
        assert torch.equal(taken[image], tokens[image, ids[image]])
    assert torch.equal(put_back(taken, ids, tokens), tokens)
    filled = put_back(taken, ids, torch.full_like(tokens, -1.0))
    assert (filled == -1.0).sum() == 3 * 3 * 5
    assert torch.equal(take(filled, ids), taken)


def test_gradients_reach_taken_tokens_alone() -> None:
    tokens = torch.rand(2, 5, 3, requires_grad=True)
    ids = torch.tensor([[0, 3], [4, 1]])
    take(tokens, ids).sum().backward()
    expected = torch.zeros(2, 5, 3)
    expected[0, [0, 3]] = expected[1, [4, 1]] = 1.0
    assert torch.equal(tokens.grad, expected)


def test_standardise_is_channel_by_channel() -> None:
    images, mean, std = torch.rand(2, 3, 4, 5), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 4.0])
    result = standardise(images, mean, std)
    assert torch.equal(result[:, 2], (images[:, 2] - mean[2]) / std[2])
