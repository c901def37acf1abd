"""CAE's regressor against its formula, written out (specification, section 2.6)."""

from dataclasses import replace

import pytest
import torch

from pantomim.core.mask import Mask
from pantomim.nn.regressor import Regressor, RegressorConfig
from pantomim.nn.vit import EncoderConfig

GRID, WIDTH = (2, 3), 8
ENCODER = EncoderConfig(image_size=(8, 12), patch_size=4, width=WIDTH, depth=1, heads=4)


def build(**changes) -> Regressor:
    torch.manual_seed(0)
    config = RegressorConfig(**{"depth": 2, "heads": 2, **changes})
    regressor = Regressor(config, ENCODER).double()
    for parameter in regressor.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return regressor


def drawn() -> tuple[torch.Tensor, Mask]:
    generator = torch.Generator().manual_seed(1)
    mask = Mask.from_scores(torch.rand(3, 6, generator=generator), 4)
    return torch.randn(3, 2, WIDTH, generator=generator, dtype=torch.float64), mask


def norm(tokens, layer):
    mean, variance = tokens.mean(-1, keepdim=True), tokens.var(-1, keepdim=True, correction=0)
    return (tokens - mean) / (variance + 1e-6).sqrt() * layer.weight + layer.bias


def by_hand(regressor: Regressor, visible: torch.Tensor, mask: Mask, image: int, keys: str) -> torch.Tensor:
    """One image, block by block."""
    masked, shown = regressor.position[mask.ids_mask[image]], regressor.position[mask.ids_keep[image]]
    queries = regressor.mask_token[0].expand(len(masked), -1)
    for block in regressor.blocks:
        context = torch.cat([visible[image], queries]) if keys == "all" else visible[image]
        places = torch.cat([shown, masked]) if keys == "all" else shown
        attn = block.attn
        q = norm(queries + masked, block.norm_q) @ attn.q.weight.T + attn.q_bias
        k = norm(context + places, block.norm_k) @ attn.k.weight.T
        v = norm(context, block.norm_v) @ attn.v.weight.T + attn.v_bias
        heads = [(q[:, i : i + 4] @ k[:, i : i + 4].T / 2).softmax(-1) @ v[:, i : i + 4] for i in (0, 4)]
        mixed = torch.cat(heads, dim=1) @ attn.proj.weight.T + attn.proj.bias
        summed = queries + (1 if block.gamma_1 is None else block.gamma_1) * mixed
        normed = norm(summed, block.norm2)
        gelu = torch.nn.functional.gelu(normed @ block.mlp.fc1.weight.T + block.mlp.fc1.bias)
        change = gelu @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
        queries = normed + (1 if block.gamma_2 is None else block.gamma_2) * change  # around the normed tensor
    return norm(queries, regressor.norm)


@pytest.mark.parametrize("keys", ["all", "visible"])
@pytest.mark.parametrize("layer_scale", [0.1, None])
def test_it_is_the_formula(keys: str, layer_scale: float | None) -> None:
    regressor, (visible, mask) = build(keys=keys, layer_scale=layer_scale), drawn()
    found = regressor(visible, mask)
    assert found.shape == (3, 4, WIDTH)
    for image in range(3):
        torch.testing.assert_close(found[image], by_hand(regressor, visible, mask, image, keys))


def test_what_is_read_matters() -> None:
    visible, mask = drawn()
    assert not torch.allclose(build(keys="all")(visible, mask), build(keys="visible")(visible, mask))


def test_with_visible_keys_hidden_patches_do_not_see_each_other() -> None:
    visible, mask = drawn()
    fewer = Mask(mask.masked, mask.ids_keep, mask.ids_mask[:, :3])
    alone = build(keys="visible")
    torch.testing.assert_close(alone(visible, mask)[:, :3], alone(visible, fewer))
    together = build(keys="all")
    assert not torch.allclose(together(visible, mask)[:, :3], together(visible, fewer))


def test_the_table_has_rows_first_and_is_no_weight() -> None:
    position = build().position
    first = WIDTH // 2
    torch.testing.assert_close(position[0, :first], position[2, :first])  # two cells of the first row
    assert not torch.allclose(position[0, :first], position[3, :first])
    torch.testing.assert_close(position[0, first:], position[3, first:])
    assert "position" not in build().state_dict()


def test_drop_path_grows_to_the_last_block() -> None:
    assert [block.drop_path.rate for block in build(depth=3, drop_path=0.2).blocks] == [0.0, 0.1, 0.2]


def test_sizes_come_from_the_encoder_unless_given() -> None:
    regressor = Regressor(RegressorConfig(depth=1), ENCODER)
    assert regressor.mask_token.shape == (1, 1, 8)
    assert regressor.blocks[0].attn.heads == 4
    other = Regressor(RegressorConfig(depth=1, width=16, heads=2), ENCODER)
    assert other.mask_token.shape == (1, 1, 16)
    assert other.blocks[0].attn.heads == 2


@pytest.mark.parametrize("initialisation", ["cae", "beit"])
def test_initial_weights_are_those_of_the_encoder(initialisation: str) -> None:
    torch.manual_seed(0)
    regressor = Regressor(RegressorConfig(width=64, heads=2), replace(ENCODER, initialisation=initialisation))
    assert 0.015 < regressor.mask_token.abs().max() <= 0.02
    for depth, block in enumerate(regressor.blocks, start=1):
        bound = (6 / 128) ** 0.5 if initialisation == "cae" else 0.02
        last = 1.0 if initialisation == "cae" else (2 * depth) ** 0.5
        assert 0.95 * bound < block.attn.k.weight.abs().max() <= bound
        assert 0.95 * bound / last < block.attn.proj.weight.abs().max() <= bound / last * (1 + 1e-6)
        assert not block.attn.q_bias.any()
        assert not block.mlp.fc2.bias.any()


@pytest.mark.parametrize("field", ["width", "depth", "heads"])
def test_sizes_below_one_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=rf"RegressorConfig\.{field} must be at least 1; got 0"):
        RegressorConfig(**{field: 0})
