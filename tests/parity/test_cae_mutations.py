"""CAE's golden items notice: one thing is broken at a time, and an item must fail."""

import functools
import math

import pytest
import torch
from golden_items import failing, mutations, other_norm_eps, outcome, with_config
from torch.nn import functional as F

from pantomim.methods.cae import CAE
from pantomim.nn import decoder, heads, mlp, regressor, vit
from pantomim.nn.position import sincos_2d
from pantomim.nn.tokens import take
from pantomim.parity import beit, cae

PRETRAIN, WITH_COPY, FINETUNE, PROBE = "cae_pretrain_b", "cae_pretrain_a", "cae_finetune", "cae_attentive_probe"
decode, target_of = decoder.LatentDecoder.forward, CAE.alignment_target


@pytest.fixture(autouse=True)
def _one_draw(request, monkeypatch):
    """Initial weights are compared where that is the question; they take most of the time."""
    if "initialisation" not in request.node.name:
        monkeypatch.setattr(cae, "initialisation", lambda *_: {})


@pytest.mark.parametrize("name", [PRETRAIN, WITH_COPY, FINETUNE, PROBE])
def test_unbroken(name):
    result = outcome(name)
    assert result.status == "PASS"
    assert result.error < 0.1


def test_layer_norm_eps(monkeypatch, tmp_path):
    other_norm_eps(monkeypatch)
    result = with_config(tmp_path, PRETRAIN, layer_norm_eps=None)  # the numbers alone must tell
    assert result.status == "FAIL"
    assert 100 < result.error < math.inf


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
    failing(PRETRAIN)


def without_positions(self, latents, ids):
    self.position = torch.zeros_like(self.position)
    return decode(self, latents, ids)


def with_gradient(self, images, mask):
    return self.latents(self.encoder, images, mask.ids_mask)


@torch.no_grad()
def all_patches(self, images, mask):
    return take(self.latents(self.aligner, images), mask.ids_mask)


def of_the_encoder(self, images, mask):
    self.update_ema(0)
    return target_of(self, images, mask)


def one_norm(self, tokens):
    query = self.norm_q(self.query_token).expand(len(tokens), -1, -1)
    return self.attn(query, self.norm_k(tokens), self.norm_k(tokens)).squeeze(1)


@mutations(
    tanh_gelu=(PRETRAIN, mlp, "ACTIVATIONS", {"gelu": functools.partial(F.gelu, approximate="tanh")}),
    keys_of_the_visible=(PRETRAIN, cae, "RegressorConfig", functools.partial(cae.RegressorConfig, keys="visible")),
    no_positions=(PRETRAIN, decoder.LatentDecoder, "forward", without_positions),
    target_after_the_copy_moves=(WITH_COPY, CAE, "alignment_target", of_the_encoder),
    one_norm_for_keys_and_values=(PROBE, heads.AttentiveHead, "pool", one_norm),
    batch_norm=(PROBE, heads.nn, "BatchNorm1d", functools.partial(torch.nn.BatchNorm1d, eps=1e-6)),
)
def test_one_thing_wrong(monkeypatch, item, owner, name, wrong):
    monkeypatch.setattr(owner, name, wrong)
    assert failing(item).compared > 40


@pytest.mark.parametrize(
    ("item", "owner", "name", "wrong", "worst"),
    [
        (PRETRAIN, CAE, "alignment_target", with_gradient, "grad"),
        (PRETRAIN, CAE, "alignment_target", all_patches, "align"),
        (
            PRETRAIN,
            cae,
            "parameter_groups",
            functools.partial(cae.parameter_groups, decay_tokens=False),
            "pretraining_parameter_groups",
        ),
        (
            FINETUNE,
            beit,
            "Classifier",
            lambda *given, learn_positions: heads.Classifier(*given),
            "trained_parameters",
        ),
    ],
    ids=["with_gradient", "all_patches", "tokens_not_decayed", "trained_table"],
)
def test_what_is_wrong_is_named(monkeypatch, item, owner, name, wrong, worst):
    monkeypatch.setattr(owner, name, wrong)
    assert worst in failing(item).worst


def test_rows_and_columns_swapped(monkeypatch):
    for module in (vit, decoder, regressor):
        monkeypatch.setattr(module, "sincos_2d_rows_first", sincos_2d)
    assert "pos" in failing(PRETRAIN).worst


def test_another_initialisation(monkeypatch):
    monkeypatch.setattr(regressor, "initialise", lambda module, scheme, blocks: None)
    assert "official_initialisation/pretext_neck.regressor_blocks" in failing(PRETRAIN).worst


@pytest.mark.parametrize(
    ("name", "changes", "status"),
    [
        (PRETRAIN, {"align_loss_weight": 1.0}, "FAIL"),
        (PRETRAIN, {"num_heads": 4}, "FAIL"),
        (PRETRAIN, {"decoder_num_heads": 3}, "FAIL"),
        (PRETRAIN, {"regressor_depth": 2}, "FAIL"),
        (PRETRAIN, {"decoder_depth": 1}, "FAIL"),
        (PRETRAIN, {"layer_scale_init": 0.1}, "FAIL"),
        (PRETRAIN, {"num_mask_patches": 12}, "FAIL"),
        # where the copy equals the encoder, it stays where it is at any momentum
        (PRETRAIN, {"base_momentum": 0.5}, "PASS"),
        (WITH_COPY, {"base_momentum": 0.5}, "FAIL"),
        (FINETUNE, {"layer_decay": None}, "PASS"),  # the groups state it too
        (FINETUNE, {"mean_pooling": False}, "FAIL"),
        (FINETUNE, {"per_block_relative_bias": False}, "FAIL"),
    ],
    ids=str,
)
def test_what_the_config_states_is_what_is_rebuilt(tmp_path, name, changes, status):
    assert with_config(tmp_path, name, **changes).status == status
