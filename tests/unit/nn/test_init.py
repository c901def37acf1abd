"""Initial weights against what the papers say of them; that they equal the authors' is a matter of `tests/parity`."""

import pytest
import torch

from pantomim.nn.blocks import Block
from pantomim.nn.init import initialise
from pantomim.nn.vit import Encoder, EncoderConfig

BEIT = {
    "position": "learned",
    "relative_position": "shared",
    "attention_bias": "qv",
    "layer_scale": 0.1,
    "initialisation": "beit",
}


def small(**changes) -> Encoder:
    torch.manual_seed(0)
    return EncoderConfig(
        **{"image_size": (12, 20), "patch_size": 4, "width": 64, "depth": 1, "heads": 2} | changes
    ).build()


def test_initialisation_is_mae_s() -> None:
    encoder = small()
    qkv = encoder.blocks[0].attn.qkv
    assert qkv.weight.abs().max() <= (6 / (64 + 192)) ** 0.5
    assert qkv.weight.abs().max() > 0.95 * (6 / (64 + 192)) ** 0.5
    assert (qkv.bias == 0).all()
    kernel = encoder.patch_embed.proj
    bound = (6 / (64 + 48)) ** 0.5
    assert 0.95 * bound < kernel.weight.abs().max() <= bound
    assert (kernel.bias != 0).any()
    assert (encoder.norm.weight == 1).all()
    assert 0 < encoder.cls_token.std() < 0.04


def test_initialisation_of_beit_is_cut_at_one_std_and_scaled_by_depth() -> None:
    encoder = small(**BEIT, depth=3)
    narrow = [encoder.patch_embed.proj.weight, encoder.cls_token, encoder.pos_embed, encoder.blocks[1].mlp.fc1.weight]
    for tensor in narrow:
        assert 0.015 < tensor.abs().max() <= 0.02
    assert encoder.blocks[1].attn.qkv.weight.std().item() == pytest.approx(0.0108, rel=0.05)
    for depth, block in enumerate(encoder.blocks, start=1):
        for matrix in (block.attn.proj.weight, block.mlp.fc2.weight):
            bound = 0.02 / (2 * depth) ** 0.5
            assert 0.95 * bound < matrix.abs().max() <= bound * (1 + 1e-6)
        assert (block.gamma_1 == 0.1).all()
        assert (block.attn.q_bias == 0).all()
    assert (encoder.patch_embed.proj.bias == 0).all()
    assert (encoder.rel_pos_bias.relative_position_bias_table == 0).all()


def test_initialisation_of_cae_is_uniform_with_a_narrow_kernel() -> None:
    encoder = small(**BEIT | {"initialisation": "cae"})
    bound = (6 / (64 + 192)) ** 0.5
    assert 0.95 * bound < encoder.blocks[0].attn.qkv.weight.abs().max() <= bound
    assert 0.019 < encoder.patch_embed.proj.weight.abs().max() <= 0.02
    assert (encoder.patch_embed.proj.bias == 0).all()


def test_every_stack_counts_its_own_blocks() -> None:
    blocks = torch.nn.ModuleList([Block(16, 2), Block(16, 2)])
    initialise(blocks, "beit", blocks)
    maxima = [block.mlp.fc2.weight.abs().max().item() for block in blocks]
    assert maxima == pytest.approx([0.02 / 2**0.5, 0.02 / 4**0.5], rel=0.05)
