import math
from dataclasses import replace

import pytest
import torch
from given import Given
from tiny import DECODER, ENCODER

from pantomim.config import Pretrain, from_dict, to_dict
from pantomim.core.batch import Batch
from pantomim.explain import count_cost
from pantomim.masking.attention import AttentionMasker
from pantomim.masking.block import BlockMasker
from pantomim.masking.random import RandomMasker
from pantomim.methods.base import COLLAPSED
from pantomim.methods.cmt_mae import CMTMAEConfig
from pantomim.methods.dbot import DBOTConfig
from pantomim.methods.mae import MAEConfig
from pantomim.nn.momentum import Momentum
from pantomim.nn.tokens import take
from pantomim.targets.distance import Distance
from pantomim.targets.pair import Blend, Concat, Weighted
from pantomim.teachers.choice import TeacherConfig
from pantomim.teachers.mixing import Mixing, Scores

RANDOM = TeacherConfig(source="random", output="norm")
JOINT = Mixing(warmup_share=0.0)
CONFIG = CMTMAEConfig(encoder=ENCODER, decoder=DECODER, teacher=RANDOM, mixing=JOINT)
ALONE, WITHOUT = Mixing(teacher_weight=1.0), Mixing(teacher_weight=0.0, warmup_share=0.0)
GUIDED_PIXELS = replace(CONFIG, feature_weight=0.0, pixel_weight=1.0)


def batch(number=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.rand(number, 3, 16, 16, generator=generator), total=number)


def draw(method, given, step=0, seed=0):
    return method.draw(given, step, torch.Generator().manual_seed(seed))


def around(config, teacher=None, steps=None):
    torch.manual_seed(3)
    method = config.build(steps, teacher or Given()).train()
    torch.manual_seed(3)
    with torch.no_grad():  # attention that is not even, features that are not the student's
        for weight in method.ema_student.parameters() if method.ema_student is not None else ():
            weight += 0.3 * torch.randn(weight.shape)
    return method


# ------------------------------------------------------------------------------------------- the two ends of the weight
def losses(config, number=5):
    torch.manual_seed(4)
    method = config.build(number).train()
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    found = []
    for step in range(number):
        given = batch(seed=step)
        loss = method(given, draw(method, given, step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.update_ema(step)
        found.append(loss.item())
    return found


def test_the_teacher_alone_is_dbot_to_the_bit():
    parts = {"encoder": ENCODER, "decoder": DECODER, "teacher": RANDOM, "masker": RandomMasker()}
    theirs = DBOTConfig(**parts, normalise="biased", distance=Distance("l2"), predict_class=False)
    ours = losses(CMTMAEConfig(**parts, mixing=ALONE))
    assert ours == losses(theirs)
    assert len(set(ours)) == 5


def test_pixels_alone_under_a_guided_mask_are_mae_with_that_guide():
    # The other reading of the paper: features decide the mask and nothing else.
    guided = replace(GUIDED_PIXELS, mixing=ALONE)
    theirs = MAEConfig(encoder=ENCODER, decoder=DECODER, masker=AttentionMasker())
    theirs = replace(theirs, guide=replace(theirs.guide, source="random"))
    assert losses(guided) == losses(theirs)
    method = around(GUIDED_PIXELS)
    outputs = method(batch(), draw(method, batch()))
    assert torch.equal(outputs["loss"], outputs["loss_pixels"])
    assert method.decoder.decoder_pred.out_features == 48
    assert method.teacher.asked == ["class"]
    assert method.ema_student is not None


def test_at_one_there_is_no_average_and_at_zero_no_teacher():
    alone = replace(CONFIG, mixing=ALONE).build(10, Given())
    assert alone.ema_student is None
    assert draw(alone, batch(), 9).features.keys() == {"teacher"}
    without = replace(CONFIG, mixing=WITHOUT, teacher=TeacherConfig()).build()
    assert without.teacher is None
    draws = draw(without, batch())
    assert draws.features.keys() == {"student"}
    assert torch.isfinite(without(batch(), draws)["loss"])


def test_the_first_phase_is_the_teachers_alone_and_the_average_moves_unasked():
    both, alone = (around(replace(CONFIG, mixing=mixing), steps=8) for mixing in (Mixing(warmup_share=0.25), ALONE))
    for name, weight in alone.named_parameters():
        if weight.requires_grad:
            weight.data = dict(both.named_parameters())[name].data[: len(weight)]  # the teacher's head comes first
    asked = []
    both.ema_student.register_forward_pre_hook(lambda _, given: asked.append(given))
    given = batch()
    for step in range(8):
        draws = draw(both, given, step)
        outputs = both(given, draws)
        assert len(asked) == (step >= 2)
        asked.clear()
        if step < 2:
            same = draw(alone, given, step)
            assert torch.equal(draws.mask.masked, same.mask.masked)
            torch.testing.assert_close(outputs["loss"], alone(given, same)["loss"])
            assert math.isnan(outputs["loss_student"])
            assert math.isnan(outputs["entropy_student"])
        else:
            expected = (outputs["loss_teacher"] + outputs["loss_student"]) / 2
            torch.testing.assert_close(outputs["loss"].detach(), expected)
        before = both.ema_student.encoder.norm.weight.clone()
        both.update_ema(step)
        assert torch.equal(both.ema_student.encoder.norm.weight, before) == (step == 7)  # momentum 1 at the end
    outputs["loss"].backward()
    assert all(weight.grad is not None for weight in both.parameters() if weight.requires_grad)


def test_every_weight_gets_a_gradient_in_the_first_phase_too():
    method = around(replace(CONFIG, mixing=Mixing()), steps=10)
    method(batch(), draw(method, batch()))["loss"].backward()
    assert all(weight.grad is not None for weight in method.parameters() if weight.requires_grad)
    assert not method.decoder.decoder_pred.weight.grad[16:].any()
    assert method.decoder.decoder_pred.weight.grad[:16].any()


# ------------------------------------------------------------------------------------------------------------ the mask
def maps_of(method, given, weight=0.5):
    attention = {name: network(given.images, "class").attention for name, network in method.networks().items()}
    return method.config.scores.maps(attention, weight)


def test_the_most_attended_of_the_mixed_map_are_masked():
    method, given = around(CONFIG), batch()
    maps, masked = maps_of(method, given), draw(method, given).mask.masked
    assert (masked.sum(1) == 12).all()
    for row in range(3):
        assert maps["mask"][row][masked[row]].min() >= maps["mask"][row][~masked[row]].max()
    torch.testing.assert_close(maps["mask"], (maps["teacher"] + maps["student"]) / 2)
    alone = around(replace(CONFIG, mixing=ALONE))
    attention = alone.teacher.attention
    by_teacher = draw(alone, given).mask.masked
    assert torch.equal(by_teacher, attention >= attention.sort(dim=1).values[:, 4:5])
    assert not torch.equal(masked, by_teacher)


@pytest.mark.parametrize("renormalise", [True, False])
def test_the_scale_of_attention_does_not_change_the_mix(renormalise):
    method, given = around(replace(CONFIG, scores=Scores(renormalise=renormalise))), batch()
    before = maps_of(method, given)["mask"]
    method.teacher.attention *= 7
    after = maps_of(method, given)["mask"]
    if renormalise:
        torch.testing.assert_close(before, after)
        torch.testing.assert_close(before.sum(1), torch.ones(3))
    else:
        assert not torch.allclose(before / before.sum(1, keepdim=True), after / after.sum(1, keepdim=True), rtol=1e-3)


def test_the_averages_attention_is_that_of_the_whole_image():
    method, given = around(CONFIG), batch()
    *_, last = method.ema_student.encoder.each_block(given.images, need_attention=True)
    seen = last.attention[:, :, 0, 1:].mean(1)
    torch.testing.assert_close(maps_of(method, given)["student"], seen / seen.sum(1, keepdim=True))


def test_weights_of_mask_and_target_are_apart():
    given, found = batch(), {}
    for in_mask, in_target in ((0.1, 0.1), (0.9, 0.1), (0.1, 0.9)):
        mixing, target = replace(JOINT, teacher_weight=in_mask), Weighted(teacher_weight=in_target)
        method = around(replace(CONFIG, mixing=mixing, target=target))
        draws = draw(method, given)
        found[in_mask, in_target] = draws.mask.masked, draws.teacher_weight.item(), method(given, draws)
    first, other_mask, other_target = found.values()
    assert not torch.equal(first[0], other_mask[0])
    assert first[1] == other_mask[1] == pytest.approx(0.1)
    assert torch.equal(first[0], other_target[0])
    parts = (first[2]["loss_teacher"], first[2]["loss_student"])
    for (_, weight, outputs), share in ((first, 0.1), (other_target, 0.9)):
        assert weight == pytest.approx(share)
        torch.testing.assert_close(outputs["loss"].detach(), share * parts[0] + (1 - share) * parts[1])


def test_a_random_mask_asks_for_no_attention():
    teacher = Given()
    teacher.queries = ()
    method = around(replace(CONFIG, masker=RandomMasker()), teacher)
    outputs = method(batch(), draw(method, batch()))
    assert teacher.asked == [None]
    assert not any(name.startswith("entropy") or name == "mask_teacher_weight" for name in outputs)


def test_a_process_masks_its_own_rows_as_alone_with_all():
    method, given = around(replace(CONFIG, masker=AttentionMasker(rule="sample_masked"))), batch()
    whole = draw(method, given)
    teacher = method.teacher
    teacher.tokens, teacher.attention = teacher.tokens[1:], teacher.attention[1:]
    part = draw(method, Batch(given.images[1:], start=1, total=3))
    assert torch.equal(whole.mask.ids_mask[1:], part.mask.ids_mask)
    torch.testing.assert_close(whole.features["student"][1:], part.features["student"])


def test_the_query_that_is_asked_for_decides():
    by_class, by_mean = (
        draw(around(replace(CONFIG, mixing=ALONE, scores=Scores(teacher_query=query))), batch()).mask.masked
        for query in ("class", "mean")
    )
    assert torch.equal(by_class, by_mean.flip(1))
    assert not torch.equal(by_class, by_mean)


# ---------------------------------------------------------------------------------------------------------- the target
def test_targets_are_the_normalised_features_of_the_masked_places():
    method = around(CONFIG)
    draws = draw(method, batch())
    for tokens in draws.features.values():
        torch.testing.assert_close(tokens.mean(2), torch.zeros(3, 12), atol=1e-5, rtol=0)
        torch.testing.assert_close(tokens.var(2, correction=0), torch.ones(3, 12), atol=1e-4, rtol=0)
    given = take(method.teacher.tokens[:, 1:], draws.mask.ids_mask)
    expected = (given - given.mean(2, keepdim=True)) / (given.var(2, correction=0, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(draws.features["teacher"], expected)


def test_with_the_mask_fixed_masked_pixels_reach_the_targets_and_not_the_student():
    method = replace(CONFIG, masker=RandomMasker()).build().train()
    given = batch()
    draws = draw(method, given)
    pixels = draws.mask.masked.view(3, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other = Batch(torch.where(pixels, 1 - given.images, given.images), total=3)
    again = draw(method, other)
    assert torch.equal(draws.mask.masked, again.mask.masked)
    for name, features in draws.features.items():
        assert not torch.allclose(features, again.features[name], atol=1e-3)
    one, two = (method.encoder(some.images, draws.mask.ids_keep).patches for some in (given, other))
    assert torch.equal(one, two)


def test_the_loss_by_hand():
    method, given = around(CONFIG), batch()
    draws = draw(method, given)
    prediction = method.decoder(method.encoder(given.images, draws.mask.ids_keep), draws.mask).unflatten(2, (2, 16))
    target = torch.stack([*draws.features.values()], dim=2)
    torch.testing.assert_close(method(given, draws)["loss"], (prediction - target).square().mean())


@pytest.mark.parametrize("target", [Weighted(), Blend(), Concat()], ids=lambda target: target.kind)
def test_each_head_begins_as_it_would_alone(target):
    widths = {"weighted": [24, 16, 48], "blend": [16, 48], "concat": [40, 48]}[target.kind]
    teacher = Given(width=16 if target.kind == "blend" else 24)
    method = around(replace(CONFIG, target=target, pixel_weight=0.1), teacher)
    for rows in method.decoder.decoder_pred.weight.split(widths):
        bound = math.sqrt(6 / (16 + len(rows)))
        assert 0.9 * bound < rows.abs().max() <= bound


def test_pixels_are_a_further_term():
    method, given = around(replace(CONFIG, feature_weight=2.0, pixel_weight=0.25)), batch()
    draws = draw(method, given)
    outputs = method(given, draws)
    torch.testing.assert_close(
        outputs["loss"].detach(),
        outputs["loss_teacher"] + outputs["loss_student"] + 0.25 * outputs["loss_pixels"].detach(),
    )
    prediction = method.decoder(method.encoder(given.images, draws.mask.ids_keep), draws.mask)[:, :, 32:]
    error = prediction - take(method.pixels(given.images), draws.mask.ids_mask)
    torch.testing.assert_close(outputs["loss_pixels"], error.square().mean())


def test_concat_predicts_both_in_the_first_phase_of_the_mask_too():
    both = around(replace(CONFIG, target=Concat(), mixing=Mixing(warmup_share=0.5)), steps=10)
    draws = draw(both, batch(), 0)
    assert draws.features["student"].abs().max() > 0
    assert "target_teacher_weight" not in both(batch(), draws)


def test_features_of_the_average_after_its_norm_or_before():
    after, before = (around(replace(CONFIG, student_output=output)) for output in ("norm", "block"))
    ones, others = (draw(method, batch()).features["student"] for method in (after, before))
    assert not torch.allclose(ones, others)


# ------------------------------------------------------------------------------------------------------ who learns what
def test_the_teacher_stands_still_and_the_average_is_one():
    torch.manual_seed(1)
    method = replace(CONFIG, momentum=Momentum(0.9)).build(4).train()
    given = batch()
    frozen = {name: weight.clone() for name, weight in method.teacher.named_parameters()}
    start = method.encoder.norm.bias.detach().clone()
    for step in range(4):
        method(given, draw(method, given, step))["loss"].backward()
        with torch.no_grad():
            method.encoder.norm.bias += 1.0  # a constant update
        method.update_ema(step)
    expected = start + sum(0.1 * 0.9 ** (4 - n) * n for n in range(1, 5))
    torch.testing.assert_close(method.ema_student.encoder.norm.bias, expected)
    for guide in method.networks().values():
        assert not guide.training
        assert all(weight.grad is None for weight in guide.parameters())
    assert all(torch.equal(frozen[name], weight) for name, weight in method.teacher.named_parameters())
    method.reset()
    assert torch.equal(method.ema_student.encoder.norm.bias, method.encoder.norm.bias)


@pytest.mark.parametrize(
    ("settings", "step", "momentum"),
    [({"half_life": 0.5}, 0, 0.5**0.25), ({"momentum": Momentum(0.9, 1.0)}, 3, 0.95)],
    ids=["half-life", "schedule"],
)
def test_the_pace_of_the_average(settings, step, momentum):
    method = replace(CONFIG, **settings).build(8)
    before = method.encoder.norm.weight.detach().clone()
    with torch.no_grad():
        method.encoder.norm.weight += 1.0
    method.update_ema(step)
    torch.testing.assert_close(method.ema_student.encoder.norm.weight, before + (1 - momentum))


def test_a_collapsed_average_is_reported():
    method, given = CONFIG.build(4), batch()
    assert draw(method, given).facts["student_std"] > COLLAPSED["student_std"]
    with torch.no_grad():
        method.ema_student.encoder.patch_embed.proj.weight.zero_()  # it no longer sees the image
    blind = draw(method, given).facts["student_std"].item()
    for logged in ({"student_std": 0.04}, {"student_std": blind}):
        assert "have collapsed" in method.warning(logged)
    for logged in ({"student_std": 0.3}, {"student_std": None}, {"student_std": math.nan}, {}):
        assert method.warning(logged) is None
    assert "method.momentum.start" in method.warning({"student_std": 0.0})
    assert "method.half_life" in replace(CONFIG, half_life=0.1).build(4).warning({"student_std": 0.0})


# ------------------------------------------------------------------------------------------------- what cannot be
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"masker": BlockMasker(ratio=0.4, exact=False, min_area=2)}, "number varies"),
        ({"masker": RandomMasker(), "scores": Scores(temperature=0.5)}, "scores must be left out"),
        ({"pixel_weight": -1.0}, "pixel_weight must be at least 0"),
        ({"feature_weight": 0.0}, "feature_weight must be above 0 unless"),
        ({"feature_weight": 0.0, "pixel_weight": 1.0, "masker": RandomMasker()}, "or take method mae"),
        ({"half_life": 2.0}, r"half_life must be in \(0, 1\]"),
        ({"half_life": 0.1, "momentum": Momentum(0.9)}, "half_life must be None where a momentum is given"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(CONFIG, **changes)


def test_teachers_that_cannot_be():
    with pytest.raises(ValueError, match="there is no default"):
        replace(CONFIG, teacher=TeacherConfig()).build()
    with pytest.raises(ValueError, match="of another width"):
        replace(CONFIG, target=Blend()).build(teacher=Given(width=24))
    teacher = Given()
    teacher.queries = ()
    with pytest.raises(ValueError, match="must have attention over patches"):
        CONFIG.build(teacher=teacher)


def test_without_a_class_token_the_patches_are_asked():
    with pytest.raises(ValueError, match=r"must be mean for the student's moving average; got class.*student_query"):
        replace(CONFIG, encoder=replace(ENCODER, class_token=False)).build(teacher=Given())
    method = around(replace(CONFIG, encoder=replace(ENCODER, class_token=False), scores=Scores(student_query="mean")))
    assert torch.isfinite(method(batch(), draw(method, batch()))["loss"])


def test_the_config_is_written_and_read():
    assert from_dict(CMTMAEConfig, to_dict(CONFIG), "here") == CONFIG


@pytest.mark.slow
def test_the_cost_of_the_networks_that_are_asked():
    both, alone, named = (
        count_cost(Pretrain("tiny", method=config), torch.float32)
        for config in (CONFIG, replace(CONFIG, mixing=ALONE), replace(CONFIG, teacher=TeacherConfig()))
    )
    assert both.draw_flops == 2 * alone.draw_flops == 2 * named.draw_flops > both.flops
