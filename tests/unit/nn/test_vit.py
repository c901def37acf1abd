from dataclasses import replace

import pytest
import torch

from pantomim.nn.vit import Attention, Block, Encoder, EncoderConfig

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
