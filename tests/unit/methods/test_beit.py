import math
from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter
from torch.nn import functional as F

from pantomim.core.batch import Batch
from pantomim.core.mask import Mask
from pantomim.masking.block import BlockMasker
from pantomim.masking.random import RandomMasker
from pantomim.methods.base import Draws
from pantomim.methods.beit import BEiT, BEiTConfig, beit_encoder
from pantomim.nn.tokens import patchify, unpatchify
from pantomim.nn.vit import MaskTokens
from pantomim.optim import parameter_groups
from pantomim.targets.pixels import PixelTargetConfig
from pantomim.targets.tokens import TokenTargetConfig

CONFIG = BEiTConfig(
    encoder=replace(beit_encoder("base", drop_path=0.0), image_size=(16, 24), patch_size=4, width=16, depth=2, heads=2),
    masker=BlockMasker(ratio=0.5, exact=False),
    target=TokenTargetConfig(tokenizer="random-projection", vocabulary=32),
)


def build(config: BEiTConfig = CONFIG) -> BEiT:
    torch.manual_seed(0)
    return config.build().double()


def drawn(method: BEiT, total: int = 3) -> tuple[Batch, Draws]:
    generator = torch.Generator().manual_seed(1)
    batch = Batch(torch.rand(total, 3, 16, 24, generator=generator, dtype=torch.float64), total=total)
    return batch, method.draw(batch, 0, generator)


def uneven() -> Draws:
    """Two masked patches in the first image, three in the others."""
    masked = torch.zeros(3, 24, dtype=torch.bool)
    masked[:, 4:6] = True
    masked[1:, 17] = True
    return Draws(Mask.from_masked(masked, 3, varies=True))


def with_patches(batch: Batch, chosen: torch.Tensor) -> Batch:
    """The same batch with other pixels in some patches."""
    patches = patchify(batch.images, 4)
    other = torch.where(chosen.unsqueeze(-1), torch.rand_like(patches), patches)
    return replace(batch, images=unpatchify(other, 4, (4, 6)))


def test_loss_is_the_cross_entropy_of_all_masked_patches_together() -> None:
    method = build()
    batch, draws = drawn(method)[0], uneven()
    masked = draws.mask.masked
    latent = method.encoder(batch.images, mask_tokens=MaskTokens(masked, method.mask_token))
    prediction, ids = method.head(latent.patches), method.target(batch.images)
    found = method(batch, draws)
    assert found["loss"].dtype == torch.float64
    torch.testing.assert_close(found["loss"], F.cross_entropy(prediction[masked], ids[masked]))
    torch.testing.assert_close(found["accuracy"], (prediction.argmax(-1) == ids)[masked].double().mean())


def test_first_loss_is_the_logarithm_of_the_vocabulary() -> None:
    method = build()
    assert method(*drawn(method))["loss"].item() == pytest.approx(math.log(32), abs=0.05)


def test_masked_pixels_reach_the_target_alone_and_visible_tokens_do_not_count() -> None:
    method = build()
    batch, draws = drawn(method)
    masked = draws.mask.masked
    replaced = MaskTokens(masked, method.mask_token)
    changed = with_patches(batch, masked)
    assert torch.equal(
        method.encoder(batch.images, mask_tokens=replaced)[1], method.encoder(changed.images, mask_tokens=replaced)[1]
    )
    assert not torch.equal(method.target(batch.images), method.target(changed.images))
    ids = method.target(batch.images)
    before = method(batch, draws)["loss"]
    method.target.tokenizer.forward = lambda _, only: torch.where(masked, ids, 0).gather(1, only)
    assert torch.equal(method(batch, draws)["loss"], before)
    method.target.tokenizer.forward = lambda _, only: torch.where(masked, 0, ids).gather(1, only)
    assert method(batch, draws)["loss"] != before


def test_gradients_reach_every_trained_parameter() -> None:
    method = build()
    with torch.no_grad():
        method.encoder.rel_pos_bias.relative_position_bias_table.normal_()
    method(*drawn(method))["loss"].backward()
    for name, parameter in method.named_parameters():
        assert parameter.requires_grad != name.startswith("target."), name
        if parameter.requires_grad:
            assert parameter.grad.abs().sum() > 0, name


def test_padding_has_no_say() -> None:
    method = build()
    batch, draws = drawn(method)[0], uneven()
    before = method(batch, draws)["loss"]
    padded = draws.mask.ids_mask.clone()
    padded[0, 2] = 20  # another visible patch
    moved = Draws(Mask(draws.mask.masked, draws.mask.ids_keep, padded, draws.mask.weight))
    torch.testing.assert_close(method(batch, moved)["loss"], before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "masker", [RandomMasker(ratio=0.4), BlockMasker(ratio=0.4), BlockMasker(ratio=0.4, exact=False)]
)
def test_any_masker_and_pixels_too(masker) -> None:
    for target in (CONFIG.target, PixelTargetConfig()):
        method = build(replace(CONFIG, masker=masker, target=target))
        loss = method(*drawn(method))["loss"]
        assert loss.isfinite()
        loss.backward()


def test_pixel_loss_is_the_mean_over_masked_patches() -> None:
    method = build(replace(CONFIG, target=PixelTargetConfig()))
    batch, draws = drawn(method)[0], uneven()
    masked = draws.mask.masked
    prediction = method.head(method.encoder(batch.images, mask_tokens=MaskTokens(masked, method.mask_token)).patches)
    expected = F.mse_loss(prediction[masked], method.target(batch.images)[masked])
    torch.testing.assert_close(method(batch, draws)["loss"], expected)


def test_a_part_of_a_batch_has_its_rows_of_the_global_draw() -> None:
    method = build()
    images = torch.rand(6, 3, 16, 24).double()
    whole = method.draw(Batch(images, total=6), 0, torch.Generator().manual_seed(3))
    part = method.draw(Batch(images[2:5], start=2, total=6), 0, torch.Generator().manual_seed(3))
    assert torch.equal(part.mask.masked, whole.mask.masked[2:5])
    assert torch.equal(part.mask.weight, whole.mask.weight[2:5])


def test_the_config_is_written_and_read() -> None:
    adapter = TypeAdapter(BEiTConfig)
    written = adapter.dump_python(CONFIG, mode="json")
    assert written["target"]["kind"] == "tokens"
    assert adapter.validate_python(written) == CONFIG


def test_default_is_the_paper_s_vit_base() -> None:
    config = BEiTConfig()
    assert config.masker.num_masked(config.encoder.grid) == 75
    assert config.masker.varies
    with pytest.raises(ValueError, match="tokenizer must be given"):
        config.build()


def test_the_authors_decay_the_mask_token_and_the_table_alone() -> None:
    method = build()
    groups = parameter_groups(method, 0.05, decay_tokens=False, decay_mask_token=True)
    decayed = {name for group in groups for name in group["param_names"] if group["weight_decay"]}
    assert {"mask_token", "encoder.rel_pos_bias.relative_position_bias_table"} <= decayed
    assert "encoder.cls_token" not in decayed
    assert not any(name.endswith(("gamma_1", "gamma_2", "bias")) for name in decayed)


def test_exports_name_the_encoder_and_the_head() -> None:
    method = build()
    assert method.exports()["encoder"] is method.encoder
    assert set(method.exports()["predictor"]) == {"mask_token", "head.weight", "head.bias"}
