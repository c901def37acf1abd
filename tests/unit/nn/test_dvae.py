import math

import pytest
import torch
from torch.nn import functional as F

from pantomim.nn.dvae import (
    Conv2d,
    DVAEDecoder,
    DVAEEncoder,
    DVAENetworks,
    DVAESizes,
    ResidualBlock,
    map_pixels,
    unmap_pixels,
)

TINY = DVAESizes(vocabulary=12, width=8, code_width=6, blocks=1, stride=4)


@pytest.mark.parametrize(
    ("sizes", "encoder", "decoder"),
    [
        (DVAESizes(), (74, 53_786_240), (76, 43_829_766)),
        (DVAESizes(width=64, blocks=1, vocabulary=512), (42, 1_321_744), (44, 1_540_694)),
    ],
    ids=["published", "small"],
)
def test_tensors_and_parameters_as_in_the_specification(sizes, encoder, decoder):
    with torch.device("meta"):
        networks = DVAENetworks(sizes)
    for network, expected in ((networks.encoder, encoder), (networks.decoder, decoder)):
        tensors = list(network.state_dict().values())
        assert (len(tensors), sum(tensor.numel() for tensor in tensors)) == expected


def test_parameters_of_a_width_of_64():
    with torch.device("meta"):
        networks = DVAENetworks(DVAESizes(width=64))
    millions = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (networks.encoder, networks.decoder)]
    assert millions == pytest.approx([6.53, 3.79], abs=0.005)


@pytest.mark.parametrize("stride", [2, 4, 8, 16])
def test_a_code_for_each_cell_and_back(stride):
    networks = DVAENetworks(DVAESizes(vocabulary=12, width=8, code_width=6, blocks=2, stride=stride, in_chans=2))
    logits = networks.encoder(torch.rand(3, 2, 2 * stride, stride))
    assert logits.shape == (3, 12, 2, 1)
    assert networks.decoder(logits.softmax(1)).shape == (3, 4, 2 * stride, stride)


def test_cells_far_apart_do_not_see_each_other():
    """The grid is in raster order: a change in one corner moves the scores there and not in the opposite one."""
    encoder = DVAEEncoder(TINY)
    images = torch.rand(1, 3, 64, 96)
    changed = images.clone()
    changed[..., :4, -4:] = 0
    moved = (encoder(images) - encoder(changed)).abs().amax(1)[0]
    assert moved[0, -1] > 1e-6
    assert moved[-1, 0] == 0
    assert moved[0, 0] == 0
    assert moved[-1, -1] == 0


def test_residual_block():
    block = ResidualBlock(8, 8, (3, 3, 3, 1), gain=0.25)
    for name, parameter in block.named_parameters():
        if name.startswith("res_path.conv_4"):
            torch.nn.init.zeros_(parameter)
    maps = torch.randn(2, 8, 4, 4)
    assert torch.equal(block(maps), maps)  # the skip path sees what comes in, negative values too
    block.res_path.conv_4.b.data.fill_(1.0)
    torch.testing.assert_close(block(maps), maps + 0.25)


def test_gain_follows_the_number_of_blocks():
    assert DVAESizes().gain == 1 / 64
    assert DVAESizes(blocks=1).gain == 1 / 16
    assert DVAESizes(blocks=1, stride=4).gain == 1 / 9
    assert DVAEEncoder(TINY).blocks.group_2.block_1.gain == 1 / 9
    assert DVAEDecoder(TINY).blocks.group_2.block_1.gain == 1 / 9


def test_initialisation():
    conv = Conv2d(64, 128, 3)
    assert conv.w.std().item() == pytest.approx(1 / math.sqrt(64 * 9), rel=0.02)
    assert not conv.b.any()


def test_the_convolutions_around_the_codes_stay_exact_under_autocast():
    networks = DVAENetworks(TINY)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = networks.encoder(torch.rand(1, 3, 8, 8))
        assert logits.dtype == torch.float32
        codes = logits.softmax(1)
        first = networks.decoder.blocks.input(codes)
        assert networks.decoder(codes).dtype == torch.bfloat16
    assert torch.equal(first, F.conv2d(codes, networks.decoder.blocks.input.w, networks.decoder.blocks.input.b))


def test_pixel_map():
    pixels = torch.tensor([0.0, 0.25, 1.0]).view(1, 1, 1, 3)
    mapped = map_pixels(pixels)
    torch.testing.assert_close(mapped.flatten(), torch.tensor([0.1, 0.3, 0.9]))
    torch.testing.assert_close(unmap_pixels(mapped), pixels)
    assert unmap_pixels(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)).flatten().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"stride": 6}, r"DVAESizes\.stride must be a power of two"),
        ({"stride": 1}, r"DVAESizes\.stride must be a power of two"),
        ({"width": 6}, r"DVAESizes\.width must be a positive multiple of 4"),
        ({"width": 0}, r"DVAESizes\.width"),
        ({"vocabulary": 1}, r"DVAESizes\.vocabulary must be at least 2"),
        ({"blocks": 0}, r"DVAESizes\.blocks must be at least 1"),
    ],
)
def test_sizes_out_of_range(changes, match):
    with pytest.raises(ValueError, match=match):
        DVAESizes(**changes)


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((1, 3, 2, 8), "multiple of the tokenizer's stride, 4; got 2x8"),
        ((1, 3, 8, 10), "multiple of the tokenizer's stride, 4; got 8x10"),
        ((1, 1, 8, 8), "must have 3 channels; got 1"),
    ],
)
def test_images_that_do_not_fit(shape, match):
    with pytest.raises(ValueError, match=match):
        DVAEEncoder(TINY)(torch.rand(shape))
