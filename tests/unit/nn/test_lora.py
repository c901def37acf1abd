"""LoRA: nothing at first, the same once merged, and nothing but it is trained."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny import BEIT_ENCODER, DECODER, ENCODER

from pantomim.methods.mae import MAEConfig
from pantomim.nn.lora import merge_lora, merged_parameters
from pantomim.nn.mlp import MlpConfig
from pantomim.nn.momentum import follow
from pantomim.optim import layer_scale, limit_training, parameter_groups
from pantomim.teachers.encoder import last_blocks

IMAGES = torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
KINDS = {"mae": ENCODER, "beit": BEIT_ENCODER, "gated": replace(ENCODER, mlp=MlpConfig("silu", gated=True))}


def answers(encoder):
    last = last_blocks(encoder, IMAGES, 1, "mean")  # whose attention has a way of its own through the layer
    return torch.cat([*(part.flatten() for part in encoder(IMAGES)[:2]), last.attention.flatten()]).detach()


def moved(encoder):
    for name, weight in encoder.named_parameters():
        if name.endswith("lora_b"):
            torch.nn.init.normal_(weight, std=0.3)
    return encoder


@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_update_is_nothing_at_first_and_the_same_once_merged(kind, mlp):
    torch.manual_seed(0)
    encoder = KINDS[kind].build().double()
    names, before = encoder.state_dict().keys(), answers(encoder)
    limit_training(encoder, 0, rank=2, alpha=4.0, mlp=mlp)
    torch.testing.assert_close(answers(encoder), before, rtol=0, atol=1e-12)
    apart = answers(moved(encoder))
    assert (apart - before).abs().max() > 1e-4
    merge_lora(encoder)
    assert (answers(encoder) - apart).abs().max() < 1e-6
    assert encoder.state_dict().keys() == names


@pytest.mark.parametrize(("frozen", "blocks"), [(0, {"0", "1"}), (1, {"1"})])
def test_of_the_encoder_low_rank_updates_alone_are_trained(frozen, blocks):
    method = MAEConfig(encoder=ENCODER, decoder=DECODER).build()
    limit_training(method.encoder, frozen, rank=2)
    groups = parameter_groups(method, 0.05, lr_scale=layer_scale(2, 0.5))
    scales = {name: group["lr_scale"] for group in groups for name in group["param_names"]}
    ours = {name for name in scales if name.startswith("encoder.")}
    assert ours == {f"encoder.blocks.{i}.attn.{n}.lora_{m}" for i in blocks for n in ("qkv", "proj") for m in "ab"}
    assert {scales[name] for name in ours} == {0.5 ** (2 - int(block)) for block in blocks}
    assert any(name.startswith("decoder.") for name in scales)


def test_a_copy_follows_the_merged_weights():
    encoder, plain = ENCODER.build(), ENCODER.build()
    copies = [copy.deepcopy(encoder).requires_grad_(False) for _ in range(2)]
    limit_training(encoder, 0, rank=2)
    plain.load_state_dict({**copies[0].state_dict()})
    for seed in range(3):
        torch.manual_seed(seed)
        moved(encoder)
        with torch.no_grad():
            for ours, (theirs, _) in zip(plain.parameters(), merged_parameters(encoder), strict=True):
                ours.copy_(theirs)
        follow(copies[0], encoder, 0.9)
        follow(copies[1], plain, 0.9)
    for ours, theirs in zip(*(each.parameters() for each in copies), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)
    assert not torch.equal(copies[0].blocks[0].attn.qkv.weight, encoder.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize(
    ("encoder", "frozen", "message"),
    [
        (ENCODER.build(), 2, "must be 0 where every block is frozen"),
        (None, 0, r"optim\.lora\.rank must be 0 for a method without an encoder"),
        (ENCODER.build(), 3, "at most the blocks of the encoder; got 3, and it has 2 blocks"),
    ],
)
def test_what_cannot_be_combined_is_refused(encoder, frozen, message):
    with pytest.raises(ValueError, match=message):
        limit_training(encoder, frozen, rank=2)
