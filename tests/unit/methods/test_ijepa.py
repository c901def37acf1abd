"""I-JEPA's data flow: what is read, what has gradients, what moves, what is exported. Values: the golden items."""

from dataclasses import replace

import pytest
import torch

from pantomim.core.batch import Batch
from pantomim.masking.multi_block import Blocks, MultiBlockMasker
from pantomim.methods.ijepa import IJEPA, IJEPAConfig, PredictorConfig
from pantomim.nn.vit import EncoderConfig

ENCODER = EncoderConfig(
    (32, 32), 4, 3, width=16, depth=2, heads=2, class_token=False, initialisation="normal", drop_path=0.5
)
CONFIG = IJEPAConfig(
    encoder=ENCODER, predictor=PredictorConfig(8, 1), masker=MultiBlockMasker(num_contexts=2, min_keep=2)
)


def build() -> tuple[IJEPA, Batch, Blocks]:
    torch.manual_seed(0)
    method = CONFIG.build(10).train()
    batch = Batch(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)), total=4)
    return method, batch, method.draw(batch, 0, torch.Generator().manual_seed(2))


def test_gradients_reach_encoder_and_predictor_alone():
    method, batch, draws = build()
    method(batch, draws)["loss"].backward()
    trained = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert trained == {name for name, p in method.named_parameters() if p.requires_grad}
    assert not any(name.startswith("target_encoder") for name in trained)


def test_patches_outside_the_context_reach_the_targets_alone():
    method, batch, draws = build()
    method.eval()
    outside = [patch for patch in range(64) if patch not in draws.context[:, 0].flatten().tolist()]
    row, col = divmod(outside[0], 8)
    changed = batch.images.clone()
    changed[0, :, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4] = 0
    seen = []
    method.predictor.register_forward_hook(lambda module, inputs, output: seen.append(output))
    losses = [method(replace(batch, images=images), draws)["loss"] for images in (batch.images, changed)]
    assert torch.equal(*seen)
    assert losses[0] != losses[1]


def test_targets_do_not_see_each_other():
    method, batch, draws = build()
    method.eval()
    context, targets = draws
    seen = []
    method.predictor.register_forward_hook(lambda module, inputs, output: seen.append(output))
    method(batch, draws)
    method(batch, Blocks(context, targets[:1]))
    torch.testing.assert_close(seen[0][: len(seen[1])], seen[1])


def test_the_target_encoder_starts_as_the_encoder_drops_nothing_and_moves_by_the_schedule():
    method, batch, draws = build()
    assert torch.equal(method.target(batch.images, draws.targets), method.target(batch.images, draws.targets))
    before = method.target_encoder.copy.norm.weight.detach().clone()
    with torch.no_grad():
        method.encoder.norm.weight.add_(1.0)
    method.update_ema(0)  # the first step keeps the first momentum, not the second: lead 0
    torch.testing.assert_close(method.target_encoder.copy.norm.weight, before + (1 - 0.996))
    method.reset()
    assert torch.equal(method.target_encoder.copy.norm.weight, method.encoder.norm.weight)


def test_a_process_draws_its_rows_of_the_global_batch():
    method, batch, draws = build()
    part = method.draw(Batch(batch.images[1:3], start=1, total=4), 0, torch.Generator().manual_seed(2))
    assert torch.equal(part.context, draws.context[:, 1:3])
    assert torch.equal(part.targets, draws.targets[:, 1:3])


def test_the_target_encoder_is_exported():
    method, _, _ = build()
    parts = method.exports()
    assert parts["encoder"] is method.target_encoder.copy
    assert set(parts["predictor"]) == {
        f"predictor.{n}" for n, p in method.predictor.named_parameters() if p.requires_grad
    }


def test_prefix_tokens_are_refused():
    with pytest.raises(ValueError, match=r"IJEPAConfig\.encoder must have no class and register tokens"):
        IJEPAConfig(encoder=replace(ENCODER, class_token=True), masker=CONFIG.masker)
