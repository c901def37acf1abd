"""CKA: what it must not see, what it must, and the estimate written out as a mean over images."""

import itertools

import pytest
import torch

from pantomim.analysis.cka import gram, hsic, layer_cka


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def alike(*layers, batches=1):
    return layer_cka(zip(*(layer.chunk(batches) for layer in layers), strict=True))


def written_out(first, second):
    """HSIC as the mean, over all quadruples of different images, of the centred products (a U-statistic)."""
    k, m = first @ first.T, second @ second.T
    total, count = 0.0, 0
    for i, j, q, r in itertools.permutations(range(len(first)), 4):
        total += (k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])).item()
        count += 1
    return total / count


def test_the_estimate_written_out():
    first = torch.randn(7, 3, dtype=torch.float64, generator=generator())
    second = first[:, :2] + torch.randn(7, 2, dtype=torch.float64, generator=generator(1))
    assert hsic(gram(first), gram(second)).item() == pytest.approx(written_out(first, second))


def test_rotation_scale_and_shift_do_not_matter():
    layer = torch.randn(20, 6, dtype=torch.float64, generator=generator())
    turned = 3.5 * layer @ torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q + 7
    found = alike(layer, turned)
    assert torch.allclose(found, torch.ones(2, 2, dtype=torch.float64))


def test_a_stretch_along_one_axis_does_matter():
    layer = torch.randn(20, 6, generator=generator())
    stretched = layer * torch.tensor([8.0, 1, 1, 1, 1, 1])
    assert alike(layer, stretched)[0, 1] < 0.8


def test_layers_that_have_nothing_in_common_have_none_on_average():
    found = [
        alike(torch.randn(16, 200, generator=generator(seed)), torch.randn(16, 300, generator=generator(seed + 1000)))
        for seed in range(200)
    ]
    values = torch.stack(found)[:, 0, 1]
    assert abs(values.mean()) < 4 * values.std() / 200**0.5  # the biased estimate would be near 1 here
    assert values.std() < 0.2


def test_batches_are_averaged_before_the_ratio():
    first = torch.randn(24, 5, dtype=torch.float64, generator=generator())
    second = first + torch.randn(24, 5, dtype=torch.float64, generator=generator(1))
    pairs = {
        (a, b): sum(hsic(gram(x), gram(y)) for x, y in zip(layers[a].chunk(3), layers[b].chunk(3), strict=True))
        for layers in [(first, second)]
        for a in range(2)
        for b in range(2)
    }
    expected = pairs[0, 1] / (pairs[0, 0] * pairs[1, 1]).sqrt()
    assert alike(first, second, batches=3)[0, 1].item() == pytest.approx(expected.item())


def test_a_layer_with_the_same_output_for_every_image_has_no_value():
    assert alike(torch.randn(8, 3), torch.ones(8, 4))[0, 1].isnan()


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="at least 4; got 3 images"):
        alike(torch.randn(3, 2))
