from dataclasses import replace

import pytest
import torch

from pantomim.nn.vit import (
    Attention,
    Block,
    Encoder,
    EncoderConfig,
    Hidden,
    give_blocks_their_tables,
    initialise_stack,
    resize_encoder_weights,
)

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


def test_hidden_patches_cannot_be_seen() -> None:
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


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_attention_on_request(layer: int) -> None:
    encoder = build()
    plain, asked = encoder(images(), IDS), encoder(images(), IDS, attention_layer=layer)
    torch.testing.assert_close(asked.patches, plain.patches)
    assert asked.attention.shape == (2, 2, 5, 5)
    torch.testing.assert_close(asked.attention.sum(dim=-1), torch.ones(2, 2, 5))


def test_attention_weights_are_the_softmax_formula() -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2).double()
    tokens = torch.rand(1, 5, 8, dtype=torch.float64)
    mixed, weights = attention(tokens, need_weights=True)
    query, key, value = (tokens[0] @ attention.qkv.weight.T + attention.qkv.bias).split(8, dim=1)
    heads = []
    for head, part in enumerate((slice(0, 4), slice(4, 8))):
        scores = (query[:, part] @ key[:, part].T / 4**0.5).exp()
        expected = scores / scores.sum(dim=1, keepdim=True)
        torch.testing.assert_close(weights[0, head], expected)
        heads.append(expected @ value[:, part])
    by_hand = torch.cat(heads, dim=1) @ attention.proj.weight.T + attention.proj.bias
    torch.testing.assert_close(mixed[0], by_hand)
    assert attention(tokens)[1] is None
    torch.testing.assert_close(attention(tokens)[0], mixed)


def test_a_block_can_compute_some_tokens_alone() -> None:
    torch.manual_seed(0)
    block = Block(8, 2).double()
    tokens = torch.rand(2, 6, 8, dtype=torch.float64, requires_grad=True)
    wanted = torch.tensor([[1, 4], [5, 0]])
    some, some_weights = block(tokens, need_weights=True, wanted=wanted)
    every, weights = block(tokens, need_weights=True)
    expected = torch.stack([every[i, ids] for i, ids in enumerate(wanted)])
    expected_weights = torch.stack([weights[i][:, ids] for i, ids in enumerate(wanted)])
    torch.testing.assert_close(some, expected)
    torch.testing.assert_close(some_weights, expected_weights)
    inputs = [tokens, *block.parameters()]
    weighting = torch.rand_like(some)
    got = torch.autograd.grad((some * weighting).sum(), inputs)
    for ours, theirs in zip(got, torch.autograd.grad((expected * weighting).sum(), inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_float64_stays_float64() -> None:
    features = build().double()(images().double(), IDS, attention_layer=0)
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
        ({"width": 0}, "width must be at least 1"),
        ({"mean": (0.5,)}, "mean must have one value per channel; got 1 for 3"),
        ({"std": (0.5, 0.0, 0.5)}, "std must be positive"),
        ({"relative_position": "shared", "registers": 2}, "registers must be 0 with relative positions.*; got 2"),
        ({"layer_scale": 0.0}, "layer_scale must be above 0; got 0.0. Leave it out"),
    ],
)
def test_bad_sizes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="heads must divide the width 16; got 3"):
        Attention(16, 3)


def test_positions_are_fixed_or_learned() -> None:
    for position, learned in (("sincos", False), ("learned", True)):
        encoder = build(replace(CONFIG, position=position))
        encoder(images(), IDS).patches.sum().backward()
        assert (encoder.pos_embed.grad is not None) == learned


def test_drop_path_drops_whole_images_in_training_only() -> None:
    torch.manual_seed(0)
    block = Block(8, 2, drop_path=0.5)
    tokens = torch.rand(64, 3, 8)
    kept = (block(tokens)[0] != tokens).flatten(1).any(dim=1)
    assert 0 < kept.sum() < 64
    block.eval()
    assert (block(tokens)[0] != tokens).flatten(1).any(dim=1).all()


def test_initialisation_is_mae_s() -> None:
    encoder = build(replace(CONFIG, width=64, depth=1))
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


BEIT = replace(
    CONFIG,
    position="none",
    relative_position="shared",
    attention_bias="qv",
    layer_scale=0.1,
    initialisation="beit",
)


def scrambled(config: EncoderConfig) -> Encoder:
    """Every parameter moved from its first value, so that none can be ignored unseen; float64."""
    encoder = build(config).double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) / 5)
    return encoder


@pytest.mark.parametrize("relative", ["shared", "blocks"])
def test_some_patches_have_the_relative_positions_of_all(relative: str) -> None:
    encoder = scrambled(replace(BEIT, relative_position=relative))
    order = torch.stack([torch.randperm(15) for _ in range(2)])
    whole, shuffled = encoder(images().double()), encoder(images().double(), order, attention_layer=0)
    torch.testing.assert_close(shuffled.prefix, whole.prefix)
    torch.testing.assert_close(shuffled.patches, whole.patches.take_along_dim(order.unsqueeze(-1), dim=1))
    plain = encoder(images().double(), attention_layer=0)
    torch.testing.assert_close(plain.patches, whole.patches)


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


def test_keys_have_no_bias() -> None:
    attention = Attention(8, 2, bias="qv").double()
    assert {name for name, _ in attention.named_parameters() if "bias" in name} == {"q_bias", "v_bias", "proj.bias"}
    torch.nn.init.normal_(attention.q_bias)
    torch.nn.init.normal_(attention.v_bias)
    fused = Attention(8, 2).double()
    weights = attention.state_dict()
    bias = torch.cat([weights.pop("q_bias"), torch.zeros(8), weights.pop("v_bias")])
    fused.load_state_dict(weights | {"qkv.bias": bias})
    tokens, queries = torch.rand(2, 5, 8, dtype=torch.float64), torch.rand(2, 3, 8, dtype=torch.float64)
    for arguments in ({}, {"queries": queries}, {"need_weights": True}):
        torch.testing.assert_close(attention(tokens, **arguments), fused(tokens, **arguments))


def test_the_bias_is_added_before_the_softmax() -> None:
    attention = Attention(8, 2, relative_rows=4).double()
    torch.nn.init.normal_(attention.relative_position_bias_table)
    tokens, index = torch.rand(3, 2, 8, dtype=torch.float64), torch.tensor([[[0, 1], [2, 3]]])
    bias = attention.relative_position_bias_table[index].permute(0, 3, 1, 2)
    _, plain = attention(tokens, need_weights=True)
    expected = (plain.log() + bias).softmax(dim=-1)
    mixed, weights = attention(tokens, need_weights=True, index=index)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(attention(tokens, index=index)[0], mixed)
    torch.testing.assert_close(attention(tokens, bias=bias)[0], mixed)


def test_layer_scale_multiplies_both_branches() -> None:
    torch.manual_seed(0)
    plain, scaled = Block(8, 2).double(), Block(8, 2, layer_scale=0.5).double()
    scaled.load_state_dict(plain.state_dict() | {f"gamma_{i}": scaled.get_parameter(f"gamma_{i}") for i in (1, 2)})
    tokens = torch.rand(2, 3, 8, dtype=torch.float64)
    after = tokens + plain.attn(plain.norm1(tokens))[0] / 2
    torch.testing.assert_close(scaled(tokens)[0], after + plain.mlp(plain.norm2(after)) / 2)


def test_a_mask_token_stands_in_before_positions_are_added() -> None:
    encoder = scrambled(replace(BEIT, position="learned"))
    token = torch.randn(1, 1, 16, dtype=torch.float64, requires_grad=True)
    masked = torch.zeros(2, 15, dtype=torch.bool)
    masked[0, 3] = masked[1, 7] = masked[1, 8] = True
    embedded = encoder.embed(images().double(), hidden=Hidden(masked, token))
    plain, position = encoder.embed(images().double()), encoder.pos_embed[0, 1:]
    assert torch.equal(embedded[~masked], plain[~masked])
    torch.testing.assert_close(embedded[1, 8], token[0, 0] + position[8])
    changed = torch.where(masked.view(2, 1, 3, 5).repeat_interleave(4, 2).repeat_interleave(4, 3), 0.7, images())
    features = encoder(changed.double(), hidden=Hidden(masked, token))
    torch.testing.assert_close(features, encoder(images().double(), hidden=Hidden(masked, token)))
    features.patches.sum().backward()
    assert token.grad.abs().sum() > 0


def test_patches_cannot_be_left_out_and_hidden() -> None:
    hidden = Hidden(torch.zeros(2, 15, dtype=torch.bool), torch.zeros(1, 1, 16))
    with pytest.raises(ValueError, match="hidden must be None where ids_keep is given"):
        build()(images(), IDS, hidden=hidden)


def test_rows_first_is_columns_first_with_the_halves_exchanged() -> None:
    rows, cols = (build(replace(CONFIG, position=kind)).pos_embed for kind in ("sincos_rows_first", "sincos"))
    assert torch.equal(rows, cols.roll(8, dims=2))
    assert not torch.equal(rows, cols)
    assert not rows.requires_grad


def test_initialisation_of_beit_is_cut_at_one_deviation_and_scaled_by_depth() -> None:
    encoder = build(replace(BEIT, width=64, depth=3, position="learned"))
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
    encoder = build(replace(BEIT, width=64, depth=1, initialisation="cae"))
    bound = (6 / (64 + 192)) ** 0.5
    assert 0.95 * bound < encoder.blocks[0].attn.qkv.weight.abs().max() <= bound
    assert 0.019 < encoder.patch_embed.proj.weight.abs().max() <= 0.02
    assert (encoder.patch_embed.proj.bias == 0).all()


def test_every_stack_counts_its_own_blocks() -> None:
    blocks = torch.nn.ModuleList([Block(16, 2), Block(16, 2)])
    initialise_stack(blocks, blocks, "beit")
    maxima = [block.mlp.fc2.weight.abs().max().item() for block in blocks]
    assert maxima == pytest.approx([0.02 / 2**0.5, 0.02 / 4**0.5], rel=0.05)


@pytest.mark.parametrize("relative", ["shared", "blocks"])
def test_another_image_size_resizes_every_table(relative: str) -> None:
    encoder = scrambled(replace(BEIT, relative_position=relative, position="learned"))
    weights, config = resize_encoder_weights(encoder.state_dict(), encoder.config, (24, 24))
    resized = config.build().double()
    resized.load_state_dict(weights)
    assert resized(torch.rand(1, 3, 24, 24, dtype=torch.float64)).patches.shape == (1, 36, 16)
    back, _ = resize_encoder_weights(encoder.state_dict(), encoder.config, CONFIG.image_size)
    assert all(torch.equal(tensor, encoder.state_dict()[name]) for name, tensor in back.items())


def test_a_shared_table_becomes_each_block_s_own() -> None:
    encoder = scrambled(BEIT)
    weights, config = give_blocks_their_tables(encoder.state_dict(), encoder.config)
    apart = config.build().double()
    apart.load_state_dict(weights)
    torch.testing.assert_close(apart(images().double())[:2], encoder(images().double())[:2], rtol=0, atol=0)
    tables = [block.attn.relative_position_bias_table for block in apart.blocks]
    with torch.no_grad():
        tables[0].add_(1)
    assert not torch.equal(*tables)
    with pytest.raises(ValueError, match="relative_position shared; got blocks"):
        give_blocks_their_tables(weights, config)
