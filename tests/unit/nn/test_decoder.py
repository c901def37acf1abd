import pytest
import torch

from pantomim.core.mask import Mask
from pantomim.nn.decoder import DecoderConfig, LatentDecoder, LatentDecoderConfig, MAEDecoder
from pantomim.nn.vit import Features

GRID, ENCODER_WIDTH, OUT = (3, 4), 12, 5


def build(depth: int = 2) -> MAEDecoder:
    torch.manual_seed(0)
    return DecoderConfig(width=8, depth=depth, heads=2).build(ENCODER_WIDTH, 2, GRID, OUT).double()


def drawn() -> tuple[Features, Mask]:
    generator = torch.Generator().manual_seed(1)
    mask = Mask.from_scores(torch.rand(2, 12, generator=generator), 9)
    prefix = torch.rand(2, 2, ENCODER_WIDTH, generator=generator, dtype=torch.float64)
    return Features(prefix, torch.rand(2, 3, ENCODER_WIDTH, generator=generator, dtype=torch.float64)), mask


def test_masked_patches_are_the_same_as_among_all() -> None:
    decoder, (latent, mask) = build(), drawn()
    every = decoder(latent, mask, everywhere=True)
    assert every.shape == (2, 12, OUT)
    for image in range(2):
        torch.testing.assert_close(decoder(latent, mask)[image], every[image, mask.ids_mask[image]])


def test_gradients_do_not_depend_on_what_is_left_out() -> None:
    decoder, (latent, mask) = build(), drawn()
    trained = [p for p in decoder.parameters() if p.requires_grad]
    some = torch.autograd.grad(decoder(latent, mask).square().sum(), trained)
    every = decoder(latent, mask, everywhere=True)[mask.masked].square().sum()
    for ours, theirs in zip(some, torch.autograd.grad(every, trained), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_class_token_comes_first_where_it_is_predicted() -> None:
    decoder, (latent, mask) = build(), drawn()
    every = decoder(latent, mask, everywhere=True, with_class=True)
    assert every.shape == (2, 1 + 12, OUT)
    torch.testing.assert_close(every[:, 1:], decoder(latent, mask, everywhere=True))
    masked = decoder(latent, mask, with_class=True)
    assert masked.shape == (2, 1 + 9, OUT)
    torch.testing.assert_close(masked[:, 0], every[:, 0])
    torch.testing.assert_close(masked[:, 1:], decoder(latent, mask))
    other = Features(latent.prefix.flip(1), latent.patches)  # two prefix tokens in another order
    assert not torch.allclose(decoder(other, mask, with_class=True)[:, 0], masked[:, 0])


def test_blocks_are_dropped_in_training_alone_and_the_more_the_deeper() -> None:
    rates = [
        block.drop_path.rate for block in DecoderConfig(8, 3, 2, drop_path=0.2).build(8, 1, GRID, OUT).decoder_blocks
    ]
    assert rates == pytest.approx([0.0, 0.1, 0.2])
    torch.manual_seed(0)
    decoder, (latent, mask) = DecoderConfig(8, 2, 2, drop_path=0.5).build(ENCODER_WIDTH, 2, GRID, OUT).double(), drawn()
    assert len({decoder(latent, mask).sum().item() for _ in range(32)}) > 1
    decoder.eval()
    assert torch.equal(decoder(latent, mask), decoder(latent, mask))
    with pytest.raises(ValueError, match="drop_path must be in"):
        DecoderConfig(drop_path=1.0)


def test_tokens_stand_at_their_places() -> None:
    """Seen by a decoder without blocks that passes its input through: visible patches hold their own embedding."""
    decoder, (latent, mask) = build(depth=1), drawn()
    seen = []
    decoder.decoder_blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    decoder(latent, mask)
    position, tokens = decoder.decoder_pos_embed[0], seen[0]
    for image in range(2):
        for prefix in range(2):
            expected = decoder.decoder_embed(latent.prefix[image, prefix]) + position[prefix]
            torch.testing.assert_close(tokens[image, prefix], expected)
        for place, patch in enumerate(mask.ids_keep[image].tolist()):
            expected = decoder.decoder_embed(latent.patches[image, place]) + position[2 + patch]
            torch.testing.assert_close(tokens[image, 2 + patch], expected)
        for patch in mask.ids_mask[image].tolist():
            torch.testing.assert_close(tokens[image, 2 + patch], decoder.mask_token[0, 0] + position[2 + patch])


def test_positions_are_fixed() -> None:
    assert not build().decoder_pos_embed.requires_grad


@pytest.mark.parametrize("field", ["width", "depth", "heads"])
def test_sizes_below_one_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=rf"DecoderConfig.{field} must be (at least 1|in \[1, 1024\]); got 0"):
        DecoderConfig(**{field: 0})


def build_latent(depth: int = 2) -> LatentDecoder:
    torch.manual_seed(0)
    decoder = LatentDecoder(LatentDecoderConfig(depth=depth), 8, 2, GRID, OUT, "cae").double()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return decoder


def latents() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.stack([torch.randperm(12, generator=generator)[:5] for _ in range(2)])
    return torch.randn(2, 5, 8, generator=generator, dtype=torch.float64), ids


def test_the_latent_decoder_adds_positions_once_and_norms_before_the_head() -> None:
    decoder, (given, ids) = build_latent(), latents()
    tokens = given + decoder.position[ids]
    for block in decoder.blocks:
        tokens = block(tokens)[0]
    torch.testing.assert_close(decoder(given, ids), decoder.head(decoder.norm(tokens)))


def test_latents_mix_within_an_image_and_their_order_does_not_matter() -> None:
    decoder, (given, ids) = build_latent(), latents()
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(decoder(given[:, order], ids[:, order]), decoder(given, ids)[:, order])
    changed = given.clone()
    changed[0, 0, 0] += 1
    found, before = decoder(changed, ids), decoder(given, ids)
    assert torch.equal(found[1], before[1])
    assert not torch.allclose(found[0, 1:], before[0, 1:])


def test_without_blocks_the_head_reads_the_latents() -> None:
    decoder, (given, ids) = build_latent(depth=0), latents()
    torch.testing.assert_close(decoder(given, ids), decoder.head(given))
    assert {name.partition(".")[0] for name, _ in decoder.named_parameters()} == {"head"}


def test_a_negative_depth_is_refused() -> None:
    with pytest.raises(ValueError, match=r"LatentDecoderConfig\.depth must be at least 0; got -1"):
        LatentDecoderConfig(depth=-1)
