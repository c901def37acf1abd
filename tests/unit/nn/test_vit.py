from dataclasses import replace
from typing import Any

import pytest
import torch

from pantomim.nn.vit import Encoder, EncoderConfig, MaskTokens

CONFIG = EncoderConfig(
    image_size=(12, 20), patch_size=4, width=16, depth=2, heads=2, mean=(0.5, 0.4, 0.3), std=(0.3, 0.2, 0.1)
)
IDS = torch.tensor([[0, 3, 7, 14], [2, 5, 6, 9]])


def images(config: EncoderConfig = CONFIG) -> torch.Tensor:
    return torch.rand(2, config.in_chans, *config.image_size, generator=torch.Generator().manual_seed(1))


def build(config: EncoderConfig = CONFIG) -> Encoder:
    torch.manual_seed(0)
    return config.build()


def test_all_patches_kept_is_the_plain_encoder() -> None:
    encoder = build()
    everything = torch.arange(encoder.num_patches).expand(2, -1)
    kept, plain = encoder(images(), everything), encoder(images())
    torch.testing.assert_close(kept.patches, plain.patches)
    torch.testing.assert_close(kept.prefix, plain.prefix)


def test_masked_patches_cannot_be_seen() -> None:
    encoder = build()
    before = images()
    changed = torch.rand(before.shape)
    for image, ids in enumerate(IDS.tolist()):
        for row, col in (divmod(patch, 5) for patch in ids):
            part = (image, slice(None), slice(4 * row, 4 * row + 4), slice(4 * col, 4 * col + 4))
            changed[part] = before[part]
    assert (changed != before).any()
    for first, second in zip(encoder(before, IDS)[:2], encoder(changed, IDS)[:2], strict=True):
        assert torch.equal(first, second)


def test_shapes_and_order_of_ids() -> None:
    encoder = build(replace(CONFIG, registers=3))
    features = encoder(images(), IDS)
    assert features.prefix.shape == (2, 4, 16)
    assert features.patches.shape == (2, 4, 16)
    assert features.attention is None
    swapped = encoder(images(), IDS.flip(1))
    torch.testing.assert_close(swapped.patches, features.patches.flip(1))


def test_attention_on_request() -> None:
    encoder = build()
    for plain, asked in zip(encoder.each_block(images()), encoder.each_block(images(), True), strict=True):
        torch.testing.assert_close(asked.patches, plain.patches)
        assert plain.attention is None
        assert asked.attention.shape == (2, 2, 16, 16)
        torch.testing.assert_close(asked.attention.sum(dim=-1), torch.ones(2, 2, 16))


def test_float64_stays_float64() -> None:
    for features in build().double().each_block(images().double(), need_attention=True):
        assert {t.dtype for t in features} == {torch.float64}


@pytest.mark.parametrize("shape", [(2, 3, 20, 12), (2, 1, 12, 20), (2, 3, 12, 16)])
def test_other_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"Encoder.images must be \(B, 3, 12, 20\)"):
        build()(torch.rand(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (13, 20)}, "image_size must be a multiple of"),
        ({"image_size": (2, 20)}, "image_size must be at least"),
        ({"width": 0}, r"width must be in \[1, 65536\]"),
        ({"mean": (0.5,)}, "mean must have one value per channel; got 1 for 3"),
        ({"std": (0.5, 0.0, 0.5)}, "std must be above 0"),
        ({"relative_position": "shared", "registers": 2}, "registers must be 0 with relative positions.*; got 2"),
        ({"layer_scale": 0.0}, "layer_scale must be above 0; got 0.0"),
    ],
)
def test_bad_sizes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_positions_are_fixed_or_learned() -> None:
    for position, learned in (("sincos", False), ("learned", True)):
        encoder = build(replace(CONFIG, position=position))
        encoder(images(), IDS).patches.sum().backward()
        assert (encoder.pos_embed.grad is not None) == learned


BEIT = replace(
    CONFIG,
    position="none",
    relative_position="shared",
    attention_bias="qv",
    layer_scale=0.1,
    initialisation="beit",
)


def scrambled(config: EncoderConfig) -> Encoder:
    """Every parameter moved from its initial value, so that none can be ignored unseen; float64."""
    encoder = build(config).double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) / 5)
    return encoder


@pytest.mark.parametrize("relative", ["shared", "blocks"])
def test_some_patches_have_the_relative_positions_of_all(relative: str) -> None:
    encoder = scrambled(replace(BEIT, relative_position=relative))
    order = torch.stack([torch.randperm(15) for _ in range(2)])
    whole, shuffled = encoder(images().double()), encoder(images().double(), order)
    torch.testing.assert_close(shuffled.prefix, whole.prefix)
    torch.testing.assert_close(shuffled.patches, whole.patches.take_along_dim(order.unsqueeze(-1), dim=1))
    *_, last = encoder.each_block(images().double(), need_attention=True)  # the unfused way
    torch.testing.assert_close(encoder.norm(last.patches), whole.patches)


def test_relative_positions_are_felt_and_learned() -> None:
    encoder = scrambled(BEIT)
    before = encoder(images().double()).patches
    assert encoder.pos_embed is None
    before.square().sum().backward()
    table = encoder.rel_pos_bias.relative_position_bias_table
    assert (table.grad.abs().sum(dim=1) > 0).all()
    with torch.no_grad():
        table.zero_()
    assert not torch.allclose(before, encoder(images().double()).patches)


def test_without_positions_patches_know_no_place() -> None:
    encoder = scrambled(replace(BEIT, relative_position="none"))
    flipped = images().double().unflatten(3, (5, 4)).flip(3).flatten(3)  # patches in another place, pixels as they were
    found = encoder(flipped).patches.unflatten(1, (3, 5)).flip(2).flatten(1, 2)
    torch.testing.assert_close(found, encoder(images().double()).patches)


def test_a_mask_token_stands_in_before_positions_are_added() -> None:
    encoder = scrambled(replace(BEIT, position="learned"))
    token = torch.randn(1, 1, 16, dtype=torch.float64, requires_grad=True)
    masked = torch.zeros(2, 15, dtype=torch.bool)
    masked[0, 3] = masked[1, 7] = masked[1, 8] = True
    embedded = encoder.embed(images().double(), mask_tokens=MaskTokens(masked, token))
    plain, position = encoder.embed(images().double()), encoder.pos_embed[0, 1:]
    assert torch.equal(embedded[~masked], plain[~masked])
    torch.testing.assert_close(embedded[1, 8], token[0, 0] + position[8])
    changed = torch.where(masked.view(2, 1, 3, 5).repeat_interleave(4, 2).repeat_interleave(4, 3), 0.7, images())
    features = encoder(changed.double(), mask_tokens=MaskTokens(masked, token))
    torch.testing.assert_close(features, encoder(images().double(), mask_tokens=MaskTokens(masked, token)))
    features.patches.sum().backward()
    assert token.grad.abs().sum() > 0


def test_patches_cannot_be_left_out_and_replaced() -> None:
    replaced = MaskTokens(torch.zeros(2, 15, dtype=torch.bool), torch.zeros(1, 1, 16))
    with pytest.raises(ValueError, match="mask_tokens must be None where ids_keep is given"):
        build()(images(), IDS, mask_tokens=replaced)


def test_rows_first_is_columns_first_with_the_halves_exchanged() -> None:
    rows, cols = (build(replace(CONFIG, position=kind)).pos_embed for kind in ("sincos_rows_first", "sincos"))
    assert torch.equal(rows, cols.roll(8, dims=2))
    assert not torch.equal(rows, cols)
    assert not rows.requires_grad


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"class_token": False, "registers": 2},
        {"relative_position": "shared", "attention_bias": "qv", "layer_scale": 0.1, "position": "none"},
        {"relative_position": "blocks"},
    ],
    ids=str,
)
def test_an_export_takes_batches_of_any_size(changes: dict[str, Any]) -> None:
    encoder = EncoderConfig(image_size=(8, 8), patch_size=4, width=12, depth=1, heads=2, **changes).build().eval()
    shapes = {"images": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(encoder, (torch.rand(2, 3, 8, 8),), dynamic_shapes=shapes, strict=False).module()
    images = torch.rand(5, 3, 8, 8)
    assert torch.equal(exported(images)[1], encoder(images).patches)
