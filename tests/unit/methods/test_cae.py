"""CAE's data flow; the traps of its specification, section 10."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from pantomim.core.batch import Batch
from pantomim.masking.block import BlockMasker
from pantomim.masking.random import RandomMasker
from pantomim.methods.base import Draws
from pantomim.methods.cae import CAE, CAEConfig, cae_encoder
from pantomim.nn.decoder import LatentDecoderConfig
from pantomim.nn.regressor import RegressorConfig
from pantomim.nn.tokens import patchify, take, unpatchify
from pantomim.recipes.cae import preset
from pantomim.targets.pixels import PixelTargetConfig
from pantomim.targets.tokens import TokenTarget

GRID = (4, 3)
CONFIG = CAEConfig(
    encoder=replace(cae_encoder("base"), image_size=(16, 12), patch_size=4, width=16, depth=2, heads=2),
    regressor=RegressorConfig(depth=2),
    decoder=LatentDecoderConfig(depth=2),
    masker=RandomMasker(ratio=0.5),
    target=PixelTargetConfig(),
)


class Brightness:
    """The id of a patch is how bright it is, in `vocabulary` steps."""

    vocabulary = 5

    def grid_of(self, image_size: tuple[int, int]) -> tuple[int, int]:
        return image_size[0] // 4, image_size[1] // 4

    def __call__(self, images: torch.Tensor, only: torch.Tensor | None = None) -> torch.Tensor:
        ids = (patchify(images, 4).mean(dim=-1) * self.vocabulary).long().clamp(0, self.vocabulary - 1)
        return ids if only is None else take(ids, only)


def build(tokens: bool = False, **changes) -> CAE:
    torch.manual_seed(0)
    config = replace(CONFIG, **changes)
    return (config.build(target=TokenTarget(Brightness())) if tokens else config.build()).double()


def drawn(method: CAE, total: int = 3) -> tuple[Batch, Draws]:
    generator = torch.Generator().manual_seed(1)
    batch = Batch(torch.rand(total, 3, 16, 12, generator=generator, dtype=torch.float64), total=total)
    return batch, method.draw(batch, 0, generator)


def with_patches(batch: Batch, ids: torch.Tensor) -> Batch:
    """The same batch with the pixels of the patches `ids` permuted."""
    patches = patchify(batch.images, 4)
    index = ids.unsqueeze(-1).expand(-1, -1, patches.shape[-1])
    order = torch.randperm(patches.shape[-1])
    other = patches.scatter(1, index, patches.gather(1, index)[:, :, order])
    return replace(batch, images=unpatchify(other, 4, GRID))


def test_the_loss_is_the_formula_for_pixels() -> None:
    method = build()
    batch, draws = drawn(method)
    mask, outputs = draws.mask, method(batch, draws)
    predicted = method.regressor(method.encoder(batch.images, mask.ids_keep).patches, mask)
    aligned = method.encoder(batch.images, mask.ids_mask).patches
    target = take(method.target(batch.images), mask.ids_mask)
    main = (method.decoder(predicted, mask.ids_mask) - target).square().mean()
    align = (predicted - aligned).square().mean()
    torch.testing.assert_close(outputs["loss"], main + 2 * align)
    torch.testing.assert_close(outputs["loss_target"], main)
    torch.testing.assert_close(outputs["loss_align"], align)


def test_the_loss_is_the_formula_for_tokens() -> None:
    method = build(tokens=True)
    batch, draws = drawn(method)
    mask, outputs = draws.mask, method(batch, draws)
    predicted = method.regressor(method.encoder(batch.images, mask.ids_keep).patches, mask)
    scores = method.decoder(predicted, mask.ids_mask).flatten(0, 1)
    ids = Brightness()(batch.images)[mask.masked]  # image by image, in raster order
    torch.testing.assert_close(outputs["loss_target"], F.cross_entropy(scores, ids))
    assert outputs["accuracy"] == (scores.argmax(dim=-1) == ids).double().mean()


def test_masked_patches_reach_target_and_alignment_alone() -> None:
    method = build(tokens=True)
    batch, draws = drawn(method)
    changed, mask = with_patches(batch, draws.mask.ids_mask), draws.mask
    seen = {}
    for name, given in (("before", batch), ("after", changed)):
        predicted = method.regressor(method.latents(method.encoder, given.images, mask.ids_keep), mask)
        seen[name] = predicted, method.decoder(predicted, mask.ids_mask), method.alignment_target(given.images, mask)
    for before, after in zip(seen["before"][:2], seen["after"][:2], strict=True):
        assert torch.equal(before, after)
    assert not torch.allclose(seen["before"][2], seen["after"][2])


def test_the_class_token_has_no_part_in_the_loss() -> None:
    method = build()
    batch, draws = drawn(method)
    kept = []

    def keep(_module, _given, out):
        if out.requires_grad:
            out.retain_grad()
        kept.append(out)

    method.encoder.norm.register_forward_hook(keep)
    method(batch, draws)["loss"].backward()
    student, aligned = kept
    assert not student.grad[:, 0].any()
    assert student.grad[:, 1:].any()
    assert not aligned.requires_grad
    assert method.encoder.cls_token.grad.any()  # it is attended to


def test_the_alignment_target_has_no_gradient_and_is_normed() -> None:
    method = build()
    batch, draws = drawn(method)
    aligned = method.alignment_target(batch.images, draws.mask)
    assert not aligned.requires_grad
    torch.testing.assert_close(aligned.mean(-1), torch.zeros_like(aligned.mean(-1)))
    torch.testing.assert_close(aligned.var(-1, correction=0), torch.ones_like(aligned.mean(-1)), rtol=0, atol=1e-4)


def test_gradients_reach_everything_that_is_trained() -> None:
    method = build(tokens=True, regressor=RegressorConfig(depth=2, width=8, heads=2))
    batch, draws = drawn(method)
    method(batch, draws)["loss"].backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is None) == (name == "encoder.pos_embed"), name
        # a shift of all keys alike changes no attention
        assert parameter.grad is None or parameter.grad.any() or "norm_k.bias" in name, name


def test_without_alignment_the_branch_does_not_run() -> None:
    method = build(align_weight=0.0)
    batch, draws = drawn(method)
    calls = []
    method.encoder.register_forward_hook(lambda *_: calls.append(1))
    outputs = method(batch, draws)
    assert len(calls) == 1
    assert torch.equal(outputs["loss"], outputs["loss_target"])
    assert "loss_align" not in outputs
    assert torch.equal(outputs["loss"], build()(batch, draws)["loss_target"])


def test_no_copy_unless_a_momentum_is_given() -> None:
    method, plain = build(align_momentum=0.75), build()
    assert plain.aligner is None
    names = {name.removeprefix("aligner.copy.") for name in method.state_dict() if name.startswith("aligner.")}
    assert names == set(plain.encoder.state_dict())
    batch, draws = drawn(method)
    assert torch.equal(method(batch, draws)["loss"], plain(batch, draws)["loss"])  # it starts as the encoder
    trained = {id(p) for p in method.parameters() if p.requires_grad}
    assert not trained & {id(p) for p in method.aligner.parameters()}


def test_the_copy_follows_the_encoder() -> None:
    method = build(align_momentum=0.75)
    batch, draws = drawn(method)
    before = method.aligner.copy.norm.weight.clone()
    with torch.no_grad():
        method.encoder.norm.weight.add_(1.0)
    target = method.alignment_target(batch.images, draws.mask)
    method.update_ema(0)
    torch.testing.assert_close(method.aligner.copy.norm.weight, before + 0.25)
    assert not torch.allclose(target, method.alignment_target(batch.images, draws.mask))
    assert not any(parameter.requires_grad for parameter in method.aligner.parameters())


def test_a_momentum_of_zero_is_the_encoder_one_step_late() -> None:
    method = build(align_momentum=0.0)
    with torch.no_grad():
        method.encoder.norm.weight.add_(1.0)
    method.update_ema(0)
    assert torch.equal(method.aligner.copy.norm.weight, method.encoder.norm.weight)


@pytest.mark.parametrize("momentum", [None, 0.5])
def test_stochastic_depth_in_the_alignment_is_a_choice(momentum: float | None) -> None:
    encoder = replace(CONFIG.encoder, drop_path=0.9, layer_scale=None)
    quiet = build(encoder=encoder, align_momentum=momentum, align_drop_path=False).train()
    batch, draws = drawn(quiet, total=8)
    mask = draws.mask
    undropped = quiet.eval().encoder(batch.images, mask.ids_mask).patches
    quiet.train()
    torch.testing.assert_close(quiet.alignment_target(batch.images, mask), undropped)
    assert all(module.training for module in quiet.encoder.modules())
    loud = build(encoder=encoder, align_momentum=momentum).train()
    assert not torch.allclose(loud.alignment_target(batch.images, mask), undropped)
    assert not build(encoder=encoder, align_drop_path=False).eval().encoder.training


def test_the_encoder_stays_in_evaluation_mode_if_it_was() -> None:
    method = build(align_drop_path=False).eval()
    batch, draws = drawn(method)
    method(batch, draws)
    assert not any(module.training for module in method.modules())


def test_another_width_brings_a_projection_on_both_sides() -> None:
    method = build(regressor=RegressorConfig(depth=1, width=8, heads=2))
    batch, draws = drawn(method)
    assert method.latents(method.encoder, batch.images, draws.mask.ids_keep).shape == (3, 6, 8)
    assert method.alignment_target(batch.images, draws.mask).shape == (3, 6, 8)
    assert "projection.linear.weight" in method.exports()["predictor"]
    assert not any(name.startswith("projection") for name in build().exports()["predictor"])


def test_gradients_survive_autocast() -> None:
    """The encoder runs twice, with gradient and without, on weights that autocast casts once."""
    found = []
    for enabled in (False, True):
        method = build().float()
        batch, draws = drawn(method)
        batch = replace(batch, images=batch.images.float())
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = method(batch, draws)["loss"]
        assert loss.dtype == torch.float32
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in method.encoder.parameters() if p.requires_grad]))
    assert F.cosine_similarity(*found, dim=0) > 0.99


def test_the_picture_skips_the_regressor() -> None:
    method = build()
    batch, _ = drawn(method)
    found = method.without_regressor(batch.images)
    latents = method.encoder(batch.images).patches
    expected = method.decoder(latents, torch.arange(12).expand(3, -1))
    torch.testing.assert_close(found, expected)
    assert found.shape == (3, 12, 48)
    method.regressor.forward = None  # nothing asks it
    method.without_regressor(batch.images)


def test_without_a_decoder_the_head_reads_the_regressor() -> None:
    method = build(decoder=LatentDecoderConfig(depth=0))
    batch, draws = drawn(method)
    predicted = method.regressor(method.latents(method.encoder, batch.images, draws.mask.ids_keep), draws.mask)
    target = take(method.target(batch.images), draws.mask.ids_mask)
    expected = F.mse_loss(method.decoder.head(predicted), target)
    torch.testing.assert_close(method(batch, draws)["loss_target"], expected)


def test_a_part_of_a_batch_has_its_rows_of_the_global_draw() -> None:
    method = build()
    images = torch.rand(6, 3, 16, 12).double()
    whole = method.draw(Batch(images, total=6), 0, torch.Generator().manual_seed(3))
    part = method.draw(Batch(images[2:5], start=2, total=6), 0, torch.Generator().manual_seed(3))
    assert torch.equal(part.mask.masked, whole.mask.masked[2:5])


def test_a_count_that_varies_is_refused() -> None:
    with pytest.raises(ValueError, match=r"CAEConfig\.masker must mask the same number .* got block.* Set exact\."):
        replace(CONFIG, masker=BlockMasker(exact=False))


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"CAEConfig\.align_weight must be at least 0; got -1\.0"):
        replace(CONFIG, align_weight=-1.0)
    with pytest.raises(ValueError, match=r"CAEConfig\.align_momentum must be in \[0, 1\]; got 1\.5"):
        replace(CONFIG, align_momentum=1.5)
    with pytest.raises(ValueError, match="align_momentum must be left out without alignment"):
        replace(CONFIG, align_momentum=0.9, align_weight=0.0)


@pytest.mark.parametrize(("num_masked", "drop_path"), [(75, 0.0), (98, 0.1)])
@pytest.mark.parametrize(("size", "scale", "initialisation"), [("base", 0.1, "cae"), ("large", 1e-5, "beit")])
def test_presets(size: str, scale: float, initialisation: str, num_masked: int, drop_path: float) -> None:
    config = preset(size, num_masked)
    assert config.masker.num_masked(config.encoder.grid) == num_masked
    mask = config.masker(2, (14, 14), torch.Generator().manual_seed(0))
    assert mask.masked.sum(dim=1).tolist() == [num_masked] * 2
    parts = (config.encoder, config.regressor, config.decoder)
    assert {part.drop_path for part in parts} == {drop_path}
    assert {part.layer_scale for part in parts} == {scale}
    assert config.encoder.initialisation == initialisation
    assert config.align_weight == 2.0
    assert (config.regressor.depth, config.decoder.depth) == (4, 4)


def test_tokens_without_a_tokenizer_say_how_to_get_one() -> None:
    with pytest.raises(ValueError, match="tokenizer"):
        preset("base").build()
