"""CAE's golden items notice: one thing is broken at a time, and an item must fail."""

import functools
import math

import pytest
import torch
from golden_items import failing, needs_all, outcome, with_config
from torch.nn import functional as F

from pantomim.methods import cae as method
from pantomim.nn import blocks, decoder, heads, regressor, vit
from pantomim.nn.position import sincos_2d
from pantomim.nn.tokens import take
from pantomim.parity import cae

PRETRAIN = "cae_pretrain_b"


def broken(name=PRETRAIN):
    """The outcome of an item that was rebuilt, compared and found wrong."""
    result = failing(name)
    assert result.compared > 40, result
    return result


@pytest.fixture(autouse=True)
def _one_draw(request, monkeypatch):
    """First values are compared where that is the question; they take most of the time."""
    if "initialisation" not in request.node.name:
        monkeypatch.setattr(cae, "initialisation", lambda item, draw: {})


def test_unbroken():
    result = outcome(PRETRAIN)
    assert result.status == "PASS"
    assert result.error < 0.1


def test_layer_norm_eps(monkeypatch, tmp_path):
    for module in (blocks, vit, decoder, regressor):
        monkeypatch.setattr(module, "NORM_EPS", 1e-5)
    result = with_config(tmp_path, "cae_pretrain_b", layer_norm_eps=None)  # the numbers alone must tell
    assert result.status == "FAIL"
    assert 100 < result.error < math.inf


def test_tanh_gelu(monkeypatch):
    monkeypatch.setattr(vit.F, "gelu", functools.partial(F.gelu, approximate="tanh"))
    assert broken().error > 100


class Changed(regressor.RegressorBlock):
    """A block that differs in one thing."""

    residual, values = "normed", "plain"

    def forward(self, queries, context, query_position, context_position):
        values = context + context_position if self.values == "with positions" else context
        keys = self.norm_k(context + context_position)
        mixed = self.attn(self.norm_q(queries + query_position), keys, self.norm_v(values))
        summed = queries + mixed  # this item has no scales
        normed = self.norm2(summed)
        return (summed if self.residual == "summed" else normed) + self.mlp(normed)


@pytest.mark.parametrize(("name", "value"), [("residual", "summed"), ("values", "with positions")])
def test_the_regressors_formula(monkeypatch, name, value):
    monkeypatch.setattr(regressor, "RegressorBlock", Changed)
    assert outcome(PRETRAIN).status == "PASS"
    monkeypatch.setattr(Changed, name, value)
    broken()


def test_keys_of_the_visible_patches_alone(monkeypatch):
    monkeypatch.setattr(cae, "RegressorConfig", functools.partial(cae.RegressorConfig, keys="visible"))
    broken()


def test_no_positions_in_the_decoder(monkeypatch):
    whole = decoder.LatentDecoder.forward

    def without(self, latents, ids):
        self.position = torch.zeros_like(self.position)
        return whole(self, latents, ids)

    monkeypatch.setattr(decoder.LatentDecoder, "forward", without)
    broken()


def test_rows_and_columns_swapped(monkeypatch):
    for module in (vit, decoder, regressor):
        monkeypatch.setattr(module, "sincos_2d_rows_first", sincos_2d)
    result = broken()
    assert "pos" in result.worst


def test_gradient_through_the_alignment(monkeypatch):
    def with_gradient(self, images, mask):
        return self.latents(self.encoder, images, mask.ids_mask)

    monkeypatch.setattr(method.CAE, "alignment_target", with_gradient)
    result = broken()
    assert "grad" in result.worst


def test_the_target_sees_all_patches(monkeypatch):
    @torch.no_grad()
    def all_patches(self, images, mask):
        return take(self.latents(self.aligner, images), mask.ids_mask)

    monkeypatch.setattr(method.CAE, "alignment_target", all_patches)
    assert "align" in broken().worst


@needs_all
def test_the_target_of_the_copy_before_it_follows(monkeypatch):
    def of_the_encoder(self, images, mask, whole=method.CAE.alignment_target):
        self.update_ema(0)
        return whole(self, images, mask)

    assert outcome("cae_pretrain_a").status == "PASS"
    monkeypatch.setattr(method.CAE, "alignment_target", of_the_encoder)
    broken("cae_pretrain_a")


def test_tokens_not_decayed(monkeypatch):
    monkeypatch.setattr(cae, "parameter_groups", functools.partial(cae.parameter_groups, decay_tokens=False))
    assert "pretraining_parameter_groups" in broken().worst


def test_another_initialisation(monkeypatch):
    monkeypatch.setattr(regressor, "initialise", lambda module, scheme, blocks: None)
    result = broken()
    assert "official_initialisation/pretext_neck.regressor_blocks" in result.worst


@pytest.mark.parametrize(
    "changes",
    [
        {"align_loss_weight": 1.0},
        {"num_heads": 4},
        {"decoder_num_heads": 3},
        {"regressor_depth": 2},
        {"decoder_depth": 1},
        {"layer_scale_init": 0.1},
        {"num_mask_patches": 12},
        {"base_momentum": 0.5},
    ],
    ids=str,
)
def test_what_the_config_states_is_what_is_rebuilt(tmp_path, changes):
    result = with_config(tmp_path, "cae_pretrain_b", **changes)
    # where the copy equals the encoder, it stays where it is at any momentum
    assert result.status == ("PASS" if "base_momentum" in changes else "FAIL")


@needs_all
def test_a_momentum_shows_where_the_copy_differs(tmp_path):
    result = with_config(tmp_path, "cae_pretrain_a", base_momentum=0.5)
    assert result.status == "FAIL"
    assert "teacher_after" in result.worst


@needs_all
def test_a_fixed_table_that_is_trained(monkeypatch):
    assert outcome("cae_finetune").status == "PASS"
    monkeypatch.setattr(cae, "Classifier", lambda *given, learn_positions: heads.Classifier(*given))
    result = broken("cae_finetune")
    assert "trained_parameters" in result.worst


@needs_all
@pytest.mark.parametrize(
    "changes", [{"layer_decay": None}, {"mean_pooling": False}, {"per_block_relative_bias": False}]
)
def test_what_the_classifiers_config_states(tmp_path, changes):
    status = "PASS" if "layer_decay" in changes else "FAIL"  # the groups state it too
    assert with_config(tmp_path, "cae_finetune", **changes).status == status


@needs_all
def test_keys_and_values_of_the_probe_share_no_norm(monkeypatch):
    def one_norm(self, tokens):
        query = self.norm_q(self.query_token).expand(len(tokens), -1, -1)
        return self.attn(query, self.norm_k(tokens), self.norm_k(tokens)).squeeze(1)

    assert outcome("cae_attentive_probe").status == "PASS"
    monkeypatch.setattr(heads.AttentiveHead, "pool", one_norm)
    broken("cae_attentive_probe")


@needs_all
def test_the_probes_batch_norm(monkeypatch):
    batch_norm = torch.nn.BatchNorm1d
    monkeypatch.setattr(heads.nn, "BatchNorm1d", functools.partial(batch_norm, eps=1e-6))
    broken("cae_attentive_probe")
