from dataclasses import replace

import pytest
import torch

from pantomim.core.batch import Batch
from pantomim.masking import STRATEGIES
from pantomim.masking.block import BlockMasker
from pantomim.masking.color_noise import ColorNoiseMasker
from pantomim.masking.random import RandomMasker
from pantomim.methods.base import Draws
from pantomim.methods.mae import MAE, MAEConfig
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.tokens import patchify, take, unpatchify
from pantomim.nn.vit import EncoderConfig

CONFIG = MAEConfig(
    encoder=EncoderConfig(image_size=(16, 8), patch_size=4, width=16, depth=2, heads=2),
    decoder=DecoderConfig(width=8, depth=2, heads=2),
)


def build() -> MAE:
    torch.manual_seed(0)
    return CONFIG.build().double()


def drawn(method: MAE, total: int = 3) -> tuple[Batch, Draws]:
    generator = torch.Generator().manual_seed(1)
    batch = Batch(torch.rand(total, 3, 16, 8, generator=generator, dtype=torch.float64), total=total)
    return batch, method.draw(batch, 0, generator)


def with_patches(batch: Batch, ids: torch.Tensor) -> Batch:
    """The same batch with other pixels in the patches `ids`."""
    patches = patchify(batch.images, 4)
    index = ids.unsqueeze(-1).expand(-1, -1, patches.shape[-1])
    other = patches.scatter(1, index, torch.rand(index.shape, dtype=patches.dtype))
    return replace(batch, images=unpatchify(other, 4, (4, 2)))


def test_loss_is_the_formula() -> None:
    method = build()
    batch, draws = drawn(method)
    latent = method.encoder(batch.images, draws.mask.ids_keep)
    prediction = method.decoder(latent, draws.mask, everywhere=True)
    per_patch = (prediction - method.target(batch.images)).square().mean(dim=-1)
    expected = (per_patch * draws.mask.masked).sum() / draws.mask.masked.sum()
    loss = method(batch, draws)["loss"]
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected)


def test_visible_patches_of_the_target_do_not_count() -> None:
    method = build()
    batch, draws = drawn(method)
    changed = with_patches(batch, draws.mask.ids_keep)
    masked = [take(method.target(b.images), draws.mask.ids_mask) for b in (batch, changed)]
    assert torch.equal(*masked)
    latent = method.encoder(batch.images, draws.mask.ids_keep)
    method.encoder.forward = lambda *_: latent  # the same encoding; only the target sees the change
    assert torch.equal(method(batch, draws)["loss"], method(changed, draws)["loss"])


def test_masked_patches_reach_the_target_alone() -> None:
    method = build()
    batch, draws = drawn(method)
    changed = with_patches(batch, draws.mask.ids_mask)
    first, second = (method.encoder(b.images, draws.mask.ids_keep) for b in (batch, changed))
    assert torch.equal(first.patches, second.patches)
    assert torch.equal(first.prefix, second.prefix)
    assert method(batch, draws)["loss"] != method(changed, draws)["loss"]


def test_gradients_reach_every_trained_parameter_and_no_position() -> None:
    method = build()
    batch, draws = drawn(method)
    method(batch, draws)["loss"].backward()
    for name, parameter in method.named_parameters():
        fixed = name.endswith("pos_embed")
        assert parameter.requires_grad != fixed, name
        assert (parameter.grad is None) == fixed, name
        assert fixed or parameter.grad.abs().sum() > 0, name


def test_the_target_carries_no_gradient() -> None:
    method = build()
    batch, _ = drawn(method)
    assert not method.target(batch.images).requires_grad


def test_a_part_of_a_batch_has_its_rows_of_the_global_draw() -> None:
    method = build()
    images = torch.rand(6, 3, 16, 8).double()
    whole = method.draw(Batch(images, total=6), 0, torch.Generator().manual_seed(3))
    part = method.draw(Batch(images[2:5], start=2, total=6), 0, torch.Generator().manual_seed(3))
    assert torch.equal(part.mask.masked, whole.mask.masked[2:5])
    assert torch.equal(part.mask.ids_keep, whole.mask.ids_keep[2:5])


def test_loss_repeats_exactly() -> None:
    method = build()
    batch, draws = drawn(method)
    assert torch.equal(method(batch, draws)["loss"], method(batch, draws)["loss"])


def test_exports_name_encoder_and_decoder() -> None:
    method = build()
    assert method.exports() == {"encoder": method.encoder, "decoder": method.decoder}


def test_a_ratio_that_leaves_nothing_is_refused_early() -> None:
    with pytest.raises(ValueError, match="leaves no visible one of 8"):
        replace(CONFIG, masker=RandomMasker(ratio=0.95))


def test_a_count_that_varies_is_refused() -> None:
    with pytest.raises(ValueError, match=r"MAEConfig\.masker must mask the same number .* got block.* Set exact\."):
        MAEConfig(masker=BlockMasker(exact=False))


def test_every_strategy_trains() -> None:
    """A step of each masker that MAE takes; they differ in what they mask and in nothing else."""
    losses = {}
    for name, strategy in STRATEGIES.items():
        masker = strategy.masker(0.75)
        if masker.varies:
            continue
        if isinstance(masker, ColorNoiseMasker):
            masker = replace(masker, noise=replace(masker.noise, patterns=8, side=16))
        torch.manual_seed(0)
        method = replace(CONFIG, encoder=replace(CONFIG.encoder, image_size=(32, 32)), masker=masker).build()
        batch = Batch(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)), total=2)
        loss = method(batch, method.draw(batch, 0, torch.Generator().manual_seed(0)))["loss"]
        loss.backward()
        losses[name] = loss.item()
    assert len(set(losses.values())) == len(losses) == 9
