import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from pantomim.nn.heads import Classifier
from pantomim.nn.vit import EncoderConfig
from pantomim.optim import LARS, Schedule, layer_scale, limit_training, parameter_groups, scaled_lr

TINY = EncoderConfig(
    image_size=(8, 12), patch_size=4, in_chans=1, width=8, depth=2, heads=2, registers=1, mean=(0.5,), std=(1.0,)
)


TABLE = "relative_position_bias_table"


def by_layer(classifier, decay):
    scale = layer_scale(classifier.encoder.depth, decay)
    return parameter_groups(classifier, 0.05, decay_tokens=False, lr_scale=scale)


def names(groups, weight_decay):
    return {name for group in groups for name in group["param_names"] if group["weight_decay"] == weight_decay}


@pytest.mark.parametrize("frozen", [1, 2])
def test_a_table_that_frozen_blocks_share_is_frozen(frozen):
    config = replace(TINY, registers=0, position="none", relative_position="shared")
    encoder = config.build()
    limit_training(encoder, frozen)
    trained = {name for name, weight in encoder.named_parameters() if weight.requires_grad}
    assert {name.split(".")[0] for name in trained} == ({"blocks", "norm"} if frozen == 1 else set())


def test_every_trainable_parameter_is_in_exactly_one_group():
    encoder = TINY.build()
    encoder.blocks[0].requires_grad_(False)
    groups = parameter_groups(encoder, 0.05)
    grouped = [parameter for group in groups for parameter in group["params"]]
    trainable = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    assert {id(p) for p in grouped} == {id(p) for p in trainable}
    assert len(grouped) == len(trainable)
    assert sum(len(group["param_names"]) for group in groups) == len(grouped)


def test_only_matrices_and_tokens_are_decayed():
    encoder = TINY.build()
    groups = parameter_groups(encoder, 0.05)
    assert {"cls_token", "reg_token", "patch_embed.proj.weight"} <= names(groups, 0.05)
    assert {"norm.weight", "norm.bias", "patch_embed.proj.bias", "blocks.1.mlp.fc1.bias"} <= names(groups, 0.0)
    assert "pos_embed" not in names(groups, 0.05) | names(groups, 0.0)  # fixed table


def test_all_parameters_can_be_decayed():
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    (group,) = parameter_groups(module, 0.1, decay_vectors=True)
    assert (len(group["params"]), group["weight_decay"]) == (4, 0.1)


def test_tokens_and_learned_positions_can_be_spared():
    encoder = EncoderConfig(image_size=(8, 8), patch_size=4, width=8, depth=1, heads=2, position="learned").build()
    assert {"cls_token", "pos_embed"} <= names(parameter_groups(encoder, 0.05), 0.05)
    assert {"cls_token", "pos_embed"} <= names(parameter_groups(encoder, 0.05, decay_tokens=False), 0.0)


@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize("mask_token", [True, False, None])
def test_the_mask_token_can_be_decayed_apart(tokens, mask_token):
    module = nn.Module()
    module.cls_token, module.mask_token = nn.Parameter(torch.ones(1, 1, 4)), nn.Parameter(torch.ones(1, 1, 4))
    groups = parameter_groups(module, 0.05, decay_tokens=tokens, decay_mask_token=mask_token)
    assert ("cls_token" in names(groups, 0.05)) == tokens
    assert ("mask_token" in names(groups, 0.05)) == (tokens if mask_token is None else mask_token)


@pytest.mark.parametrize(("relative", "scale"), [("shared", 1.0), ("blocks", 0.25)])
def test_a_shared_table_learns_like_the_head_and_a_block_s_own_like_the_block(relative, scale):
    encoder = replace(TINY, registers=0, relative_position=relative).build()
    groups = by_layer(Classifier(encoder, 3), 0.5)
    (first,) = {
        group["lr_scale"]
        for group in groups
        for name in group["param_names"]
        if name in ("encoder.rel_pos_bias.relative_position_bias_table", "encoder.blocks.0.attn." + TABLE)
    }
    assert first == scale


def test_torch_optimizers_take_the_groups_and_keep_the_names():
    optimizer = torch.optim.AdamW(parameter_groups(TINY.build(), 0.05), lr=1e-3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    assert all(len(group["param_names"]) == len(group["params"]) for group in optimizer.param_groups)


@pytest.mark.parametrize("pool", ["mean", "class"])
def test_layer_decay_follows_the_distance_from_the_head(pool):
    classifier = Classifier(TINY.build(), num_classes=3, pool=pool)
    groups = by_layer(classifier, 0.5)
    scale = {name: group["lr_scale"] for group in groups for name in group["param_names"]}
    assert set(scale) == {name for name, _ in classifier.named_parameters()}
    assert scale["encoder.cls_token"] == scale["encoder.pos_embed"] == scale["encoder.reg_token"] == 0.5**3
    assert scale["encoder.patch_embed.proj.weight"] == 0.5**3
    assert scale["encoder.blocks.0.norm1.bias"] == 0.5**2
    assert scale["encoder.blocks.1.mlp.fc2.weight"] == 0.5
    assert scale["head.weight"] == 1.0
    assert scale["fc_norm.weight" if pool == "mean" else "encoder.norm.weight"] == 1.0
    assert {"encoder.cls_token", "encoder.reg_token", "encoder.pos_embed", "head.bias"} <= names(groups, 0.0)


def test_vit_base_layer_scales_match_the_paper_recipe():
    encoder = EncoderConfig(image_size=(16, 16), patch_size=16, width=8, depth=12, heads=2).build()
    groups = by_layer(Classifier(encoder, 2), 0.65)
    scales = [group["lr_scale"] for group in groups]
    assert min(scales) == pytest.approx(0.65**13)
    assert max(scales) == 1.0


def test_layers_are_found_at_any_depth_and_tokens_decay_if_asked_for():
    owner = nn.ModuleDict({"task": nn.ModuleDict({"encoder": TINY.build(), "neck": nn.Linear(3, 3)})})
    groups = parameter_groups(owner, 0.05, lr_scale=layer_scale(2, 0.5))
    scale = {name: group["lr_scale"] for group in groups for name in group["param_names"]}
    assert scale["task.encoder.cls_token"] == 0.5**3
    assert scale["task.encoder.blocks.1.attn.qkv.weight"] == 0.5
    assert scale["task.encoder.norm.weight"] == scale["task.neck.weight"] == 1.0
    assert {"task.encoder.cls_token", "task.encoder.reg_token"} <= names(groups, 0.05)


def test_schedule_rises_from_zero_and_ends_at_the_minimum():
    values = [Schedule(1.0, 0.1, warmup=10, total=110).mae(step) for step in range(121)]
    assert values[0] == 0.0
    assert values[5] == pytest.approx(0.5)
    assert values[10] == 1.0
    assert values[60] == pytest.approx(0.55)
    assert values[110] == values[120] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(values[10:]))


def test_schedule_does_not_depend_on_the_unit():
    in_steps = Schedule(2e-3, 1e-6, warmup=50, total=1000).mae(333)
    in_epochs = Schedule(2e-3, 1e-6, warmup=5, total=100).mae(33.3)
    assert in_steps == pytest.approx(in_epochs, rel=1e-12)


def test_a_warmup_may_start_above_zero():
    found = [Schedule(1.0, 0.0, warmup=4, total=20, start=0.2).mae(step) for step in range(5)]
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_simmims_rate_drops_in_the_last_eighth():
    """Epoch 700 of 800."""
    found = [Schedule(4e-4, 4e-5, warmup=10, total=800, start=2e-6).drop(epoch) for epoch in range(800)]
    assert found[0] == 2e-6
    assert found[5] == pytest.approx(2e-6 + (4e-4 - 2e-6) / 2)
    assert set(found[10:700]) == {4e-4}
    assert set(found[700:]) == {4e-5}


def test_schedule_without_warmup_starts_at_the_base():
    assert Schedule(3.0, 0.0, warmup=0, total=4).mae(0) == 3.0


def test_beit_warms_up_in_one_step_less():
    schedule = Schedule(1.0, 0.1, warmup=5, total=25, start=0.2)
    assert [schedule.beit(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    assert [schedule.beit(step) for step in range(5, 26)] == [schedule.mae(step) for step in range(5, 26)]
    assert Schedule(1.0, 0.0, warmup=1, total=9, start=0.3).beit(0) == 0.3


def test_mmengines_rate_is_the_base_twice_and_ends_at_the_minimum():
    schedule = Schedule(1.0, 0.1, warmup=5, total=15, start=0.2)
    found = [schedule.poly(step) for step in range(16)]
    assert found[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert found[5:15] == pytest.approx([1.0 - 0.1 * step for step in range(10)])
    assert found[15] == pytest.approx(0.1)


def test_mmcvs_rate_falls_from_the_first_step_on():
    bare = [Schedule(2.0, 0.0, warmup=0, total=20).mmcv(step) for step in range(21)]
    assert bare == pytest.approx([2.0 - 0.1 * step for step in range(21)])
    found = [Schedule(2.0, 0.0, warmup=4, total=20, start=0.5).mmcv(step) for step in range(21)]
    assert found[:4] == pytest.approx([bare[step] * (0.25 + 0.75 * step / 4) for step in range(4)])
    assert found[4:] == bare[4:]


@pytest.mark.parametrize("warmup", [-1, 10, 11])
def test_schedule_refuses_a_warmup_that_does_not_fit(warmup):
    with pytest.raises(ValueError, match=r"warmup must be in \[0, total\)"):
        Schedule(1.0, 0.0, warmup=warmup, total=10).mae(0)


def test_learning_rate_is_per_256_images():
    assert scaled_lr(1.5e-4, 4096) == pytest.approx(2.4e-3)
    assert scaled_lr(0.1, 16384) == pytest.approx(6.4)


def test_lars_step_is_proportional_to_the_weights_and_not_to_the_gradient():
    steps = []
    for size in (1.0, 1e4):
        weight = nn.Parameter(torch.full((3, 4), 2.0))
        weight.grad = torch.full((3, 4), size)
        LARS([weight], lr=0.5).step()
        steps.append((2.0 - weight.detach()).norm().item())
    expected = 0.5 * 0.001 * 2.0 * math.sqrt(12)
    assert steps[0] == pytest.approx(expected, rel=1e-4)
    assert steps[1] == pytest.approx(expected, rel=1e-4)


def test_lars_is_momentum_sgd_for_vectors():
    ours, theirs = (nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    lars, sgd = LARS([ours], lr=0.1, weight_decay=0.3), torch.optim.SGD([theirs], lr=0.1, momentum=0.9)
    for gradient in ([0.5, 1.0], [-1.0, 2.0]):
        ours.grad, theirs.grad = torch.tensor(gradient), torch.tensor(gradient)
        lars.step()
        sgd.step()
    torch.testing.assert_close(ours, theirs)


def test_lars_leaves_parameters_without_gradient():
    used, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    used.sum().backward()
    LARS([used, unused], lr=1.0).step()
    assert not torch.equal(used, torch.ones(2, 2))
    torch.testing.assert_close(unused, torch.ones(2, 2))


def test_lars_resumes_from_its_state():
    def parameter():
        return nn.Parameter(torch.linspace(-1, 1, 6).view(2, 3))

    def advance(optimizer, weight):
        weight.grad = weight.detach() ** 2 + 1
        optimizer.step()

    straight = parameter()
    optimizer = LARS([straight], lr=0.1)
    for _ in range(4):
        advance(optimizer, straight)
    resumed = parameter()
    first = LARS([resumed], lr=0.1)
    for _ in range(2):
        advance(first, resumed)
    second = LARS([resumed], lr=0.1)
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        advance(second, resumed)
    assert torch.equal(straight, resumed)
