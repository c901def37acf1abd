import pytest
import torch

from pantomim.masking.mask import Mask
from pantomim.nn.decoder import DecoderConfig, MAEDecoder
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


def test_hidden_patches_are_the_same_as_among_all() -> None:
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
    with pytest.raises(ValueError, match=f"DecoderConfig.{field} must be at least 1; got 0"):
        DecoderConfig(**{field: 0})
