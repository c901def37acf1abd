import copy
import math
from dataclasses import replace

import pytest
import torch
from tiny import DECODER, ENCODER

from pantomim.config import Pretrain, from_dict, to_dict
from pantomim.core.batch import Batch
from pantomim.explain import count_cost
from pantomim.masking.attention import AttentionMasker
from pantomim.masking.block import BlockMasker
from pantomim.masking.random import RandomMasker
from pantomim.methods.cmt_mae import CMTMAE, COLLAPSED, CMTMAEConfig, Mixing, Scores, deviation, evenness
from pantomim.methods.dbot import DBOTConfig
from pantomim.methods.guides import ask
from pantomim.nn.momentum import Momentum
from pantomim.nn.tokens import take
from pantomim.targets.distance import Distance
from pantomim.teachers.base import Guidance, Teacher
from pantomim.teachers.choice import TeacherConfig
from pantomim.teachers.encoder import EncoderTeacher

RANDOM = TeacherConfig(source="random", output="norm")
JOINT = Mixing(stage_mode="joint")
CONFIG = CMTMAEConfig(encoder=ENCODER, decoder=DECODER, teacher=RANDOM, mixing=JOINT)
ALONE, WITHOUT = Mixing(teacher_weight=1.0), Mixing(teacher_weight=0.0, stage_mode="joint")


class Given(Teacher):
    """Says what it is given to say, and counts how often it is asked, and for which attention."""

    queries = ("class", "mean")

    def __init__(self, width=16, seed=5, num_prefix=1):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randn(3, num_prefix + 16, width, generator=generator) * 3 + 1
        self.attention = torch.rand(3, 16, generator=generator) / 20
        self.num_prefix, self.width, self.grid, self.asked = num_prefix, width, (4, 4), []
        self._freeze()

    def forward(self, images, query=None):
        self.asked.append(query)
        rows = torch.arange(len(images)) % 3
        tokens = self.tokens[rows]
        attention = None if query is None else self.attention[rows]
        return Guidance(tokens[:, : self.num_prefix], tokens[:, self.num_prefix :], attention)


def batch(number=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.rand(number, 3, 16, 16, generator=generator), total=number)


def draw(method, given, step=0, seed=0):
    return method.draw(given, step, torch.Generator().manual_seed(seed))


def around(config, teacher=None, seed=3):
    torch.manual_seed(seed)
    method = config.build_around(Given() if teacher is None else teacher).train()
    torch.manual_seed(seed)
    with torch.no_grad():  # attention that is not even, features that are not the student's
        for weight in method.student.parameters() if method.student is not None else ():
            weight += 0.3 * torch.randn(weight.shape)
    return method


# ------------------------------------------------------------------------------------------- the two ends of the weight
def test_the_teacher_alone_is_dbot_to_the_bit():
    masker, distance = RandomMasker(), Distance("l2")
    ours = CMTMAEConfig(encoder=ENCODER, decoder=DECODER, teacher=RANDOM, masker=masker, mixing=ALONE)
    theirs = DBOTConfig(
        encoder=ENCODER,
        decoder=DECODER,
        teacher=RANDOM,
        masker=masker,
        normalise="biased",
        distance=distance,
        predict_class=False,
    )
    losses = []
    for config in (ours, theirs):
        torch.manual_seed(4)
        method = config.build().train()
        method.begin(5)
        optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
        for step in range(5):
            given = batch(seed=step)
            loss = method(given, draw(method, given, step))["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            method.update_ema(step)
            losses.append(loss.item())
    assert losses[:5] == losses[5:]
    assert len(set(losses)) == 5


def test_at_one_there_is_no_copy_and_at_zero_no_teacher():
    alone = replace(CONFIG, mixing=ALONE).build_around(Given())
    alone.begin(10)
    assert alone.student is None
    assert draw(alone, batch(), 9).student is None
    without = replace(CONFIG, mixing=WITHOUT, teacher=TeacherConfig()).build()
    assert without.teacher is None
    draws = draw(without, batch())
    assert draws.teacher is None
    assert torch.isfinite(without(batch(), draws)["loss"])
    assert list(without.heads) == ["student"]
    assert list(alone.heads) == ["teacher"]


def test_the_first_phase_is_the_teachers_alone_and_the_copy_follows_unasked():
    both, alone = (around(replace(CONFIG, mixing=mixing)) for mixing in (Mixing(warmup_share=0.25), ALONE))
    for name, weight in alone.named_parameters():
        if weight.requires_grad:
            weight.data = dict(both.named_parameters())[name].data[: len(weight)]  # the teacher's head comes first
    asked = []
    both.student.register_forward_pre_hook(lambda _, given: asked.append(given) if len(given[0]) == 3 else None)
    both.begin(8)
    alone.begin(8)
    given = batch()
    for step in range(8):
        draws = draw(both, given, step)
        outputs = both(given, draws)
        assert len(asked) == max(step - 1, 0)
        if step < 2:
            same = draw(alone, given, step)
            assert torch.equal(draws.mask.masked, same.mask.masked)
            torch.testing.assert_close(outputs["loss"], alone(given, same)["loss"])
            assert math.isnan(outputs["loss_student"])
            assert math.isnan(outputs["entropy_student"])
        else:
            expected = (outputs["loss_teacher"] + outputs["loss_student"]) / 2
            torch.testing.assert_close(outputs["loss"].detach(), expected)
        assert outputs.keys() == both(given, draw(both, given, 7)).keys()
        asked.pop()
        before = both.student.teacher.encoder.norm.weight.clone()
        both.update_ema(step)
        assert torch.equal(both.student.teacher.encoder.norm.weight, before) == (step == 7)  # momentum 1 at the end
    outputs["loss"].backward()
    assert all(weight.grad is not None for weight in both.parameters() if weight.requires_grad)


def test_every_weight_gets_a_gradient_in_the_first_phase_too():
    method = around(replace(CONFIG, mixing=Mixing()))
    method.begin(10)
    method(batch(), draw(method, batch()))["loss"].backward()
    assert all(weight.grad is not None for weight in method.parameters() if weight.requires_grad)
    assert not method.decoder.decoder_pred.weight.grad[16:].any()
    assert method.decoder.decoder_pred.weight.grad[:16].any()


# ------------------------------------------------------------------------------------------------------------ the mask
def maps_of(method, given, weight):
    teacher = ask(method.teacher, given.images, "class")
    student = ask(method.student, given.images, "class")
    return method.maps(teacher, student, weight)


def test_the_most_attended_of_the_mixed_map_are_hidden():
    method, given = around(CONFIG), batch()
    maps, masked = maps_of(method, given, 0.5), draw(method, given).mask.masked
    assert (masked.sum(1) == 12).all()
    for row in range(3):
        assert maps["mask"][row][masked[row]].min() >= maps["mask"][row][~masked[row]].max()
    torch.testing.assert_close(maps["mask"], (maps["teacher"] + maps["student"]) / 2)
    assert not torch.equal(masked, draw(around(replace(CONFIG, mixing=ALONE)), given).mask.masked)


@pytest.mark.parametrize("renormalise", [True, False])
def test_the_scale_of_attention_does_not_change_the_mix(renormalise):
    method, given = around(replace(CONFIG, scores=Scores(renormalise=renormalise))), batch()
    before = maps_of(method, given, 0.5)["mask"]
    method.teacher.attention *= 7
    after = maps_of(method, given, 0.5)["mask"]
    if renormalise:
        torch.testing.assert_close(before, after)
        torch.testing.assert_close(before.sum(1), torch.ones(3))
    else:
        assert not torch.allclose(before / before.sum(1, keepdim=True), after / after.sum(1, keepdim=True), rtol=1e-3)


def test_the_copys_attention_is_that_of_the_whole_image():
    method, given = around(CONFIG), batch()
    seen = method.student.teacher.encoder(given.images, attention_layer=-1).attention[:, :, 0, 1:].mean(1)
    expected = seen / seen.sum(1, keepdim=True)
    torch.testing.assert_close(maps_of(method, given, 0.5)["student"], expected)


def test_weights_of_mask_and_target_are_apart():
    given, found = batch(), {}
    for in_mask, in_target in ((0.1, 0.1), (0.9, 0.1), (0.1, 0.9)):
        mixing = Mixing(mask_teacher_weight=in_mask, target_teacher_weight=in_target, stage_mode="joint")
        method = around(replace(CONFIG, mixing=mixing))
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
    method = around(replace(CONFIG, masker=RandomMasker()), teacher)
    outputs = method(batch(), draw(method, batch()))
    assert teacher.asked == [None]
    assert not any(name.startswith("entropy") or name == "mask_teacher_weight" for name in outputs)


def test_a_peaked_map_and_an_even_one():
    even, peaked = torch.ones(2, 16), torch.eye(16)[:2]
    assert evenness(even).item() == pytest.approx(1)
    assert evenness(peaked).item() == pytest.approx(0)
    sharper = Scores(temperature=0.5)(torch.tensor([[1.0, 3.0]]))
    torch.testing.assert_close(sharper, torch.tensor([[0.1, 0.9]]))


def test_a_process_masks_its_own_rows_as_alone_with_all():
    method, given = around(replace(CONFIG, masker=AttentionMasker(rule="sample_masked"))), batch()
    whole = draw(method, given)
    teacher = method.teacher
    teacher.tokens, teacher.attention = teacher.tokens[1:], teacher.attention[1:]
    part = draw(method, Batch(given.images[1:], start=1, total=3))
    assert torch.equal(whole.mask.ids_mask[1:], part.mask.ids_mask)
    torch.testing.assert_close(whole.student[1:], part.student)


# ---------------------------------------------------------------------------------------------------------- the target
def test_targets_have_mean_zero_and_variance_one():
    draws = draw(around(CONFIG), batch())
    for tokens in (draws.teacher, draws.student):
        torch.testing.assert_close(tokens.mean(2), torch.zeros(3, 12), atol=1e-5, rtol=0)
        torch.testing.assert_close(tokens.var(2, correction=0), torch.ones(3, 12), atol=1e-4, rtol=0)


def test_with_the_mask_fixed_hidden_pixels_reach_the_targets_and_not_the_student():
    method = replace(CONFIG, masker=RandomMasker()).build().train()
    given = batch()
    draws = draw(method, given)
    pixels = draws.mask.masked.view(3, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other = Batch(torch.where(pixels, 1 - given.images, given.images), total=3)
    again = draw(method, other)
    assert torch.equal(draws.mask.masked, again.mask.masked)
    for name in ("teacher", "student"):
        assert not torch.allclose(getattr(draws, name), getattr(again, name), atol=1e-3)
    one, two = (method.encoder(some.images, draws.mask.ids_keep).patches for some in (given, other))
    assert torch.equal(one, two)


@pytest.mark.parametrize("positions", ["masked", "all"])
@pytest.mark.parametrize("predict_class", [True, False])
@pytest.mark.parametrize("form", ["mae", "prompting"])
def test_the_loss_by_hand(positions, predict_class, form):
    config = replace(CONFIG, positions=positions, predict_class=predict_class, decoder_form=form)
    method, given = around(config), batch()
    draws = draw(method, given)
    outputs = method(given, draws)
    everywhere = method.decoder(method.encoder(given.images, draws.mask.ids_keep), draws.mask, True, True)
    said = ask(method.student, given.images, None)
    both = torch.cat([method.teacher.tokens, torch.cat([said.prefix, said.patches], 1)], 2).unflatten(2, (2, 16))
    target = (both - both.mean(3, keepdim=True)) / (both.var(3, correction=0, keepdim=True) + 1e-6).sqrt()
    each = (everywhere.unflatten(2, (2, 16)) - target).square().mean(3).mean(2)
    counts = torch.ones(3, 16, dtype=torch.bool) if positions == "all" else draws.mask.masked
    counts = torch.cat([torch.full((3, 1), predict_class), counts], 1)
    torch.testing.assert_close(outputs["loss"], each[counts].mean())


def test_a_blend_has_the_gradient_of_the_weighted_sum_for_squares_and_for_nothing_else():
    given = batch()
    for distance, same in (
        (Distance("l2"), True),
        (Distance("smooth_l1", beta=0.5), False),
        (Distance("cosine"), False),
    ):
        found = []
        for config in (replace(CONFIG, shared_head=True), replace(CONFIG, target_mode="blend")):
            method = around(replace(config, distance=distance, mixing=replace(JOINT, teacher_weight=0.3)))
            draws = draw(method, given)
            loss = method(given, draws)["loss"]
            loss.backward()
            found.append((loss.item(), [p.grad for p in method.parameters() if p.requires_grad]))
        (one, ours), (other, theirs) = found
        equal = all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))
        assert equal == same, distance.form
        if same:
            gap = 0.3 * 0.7 * (draws.teacher - draws.student).square().mean().item()
            assert one == pytest.approx(other + gap, rel=1e-5)


def test_concat_is_the_half_of_both_with_two_heads():
    given, found = batch(), []
    for config in (CONFIG, replace(CONFIG, target_mode="concat")):
        method = around(config)
        with torch.no_grad():  # one head begins otherwise than two
            torch.manual_seed(8)
            method.decoder.decoder_pred.weight.normal_()
        loss = method(given, draw(method, given))["loss"]
        loss.backward()
        found.append((loss, method.decoder.decoder_pred.weight.grad, method.encoder.norm.weight.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_each_head_begins_as_it_would_alone():
    method = around(replace(CONFIG, pixel_weight=0.1), Given(width=24))
    assert method.heads == {"teacher": 24, "student": 16, "pixels": 48}
    for rows in method.decoder.decoder_pred.weight.split([24, 16, 48]):
        bound = math.sqrt(6 / (16 + len(rows)))
        assert 0.9 * bound < rows.abs().max() <= bound


@pytest.mark.parametrize("positions", ["masked", "all"])
def test_pixels_are_a_further_term(positions):
    config = replace(CONFIG, pixel_weight=0.25, positions=positions, predict_class=True)
    method, given = around(config), batch()
    draws = draw(method, given)
    outputs = method(given, draws)
    features = (outputs["loss_teacher"] + outputs["loss_student"]) / 2
    torch.testing.assert_close(outputs["loss"].detach(), features + 0.25 * outputs["loss_pixels"].detach())
    latent = method.encoder(given.images, draws.mask.ids_keep)
    said = method.decoder(latent, draws.mask, everywhere=True)[:, :, 32:]
    error = (said - method.pixels(given.images)).square().mean(2)
    counts = error if positions == "all" else error[draws.mask.masked]
    torch.testing.assert_close(outputs["loss_pixels"], counts.mean())


def test_the_decoder_may_read_the_teacher_at_visible_patches_only():
    method, given = around(replace(CONFIG, decoder_input="features")), batch()
    draws = draw(method, given)
    assert draws.context.shape == (3, 4, 16)
    loss = method(given, draws)["loss"]
    assert method.decoder.decoder_embed.in_features == 32
    for hidden, changes in ((True, False), (False, True)):
        other = copy.deepcopy(method)
        patches = other.teacher.tokens[:, 1:]
        chosen = draws.mask.masked if hidden else ~draws.mask.masked
        patches[chosen] = patches[chosen].flip(-1)
        context = draw(other, given).context
        assert torch.equal(context, draws.context) != changes
        again = other(given, replace(draws, context=context))["loss"]
        assert torch.equal(again, loss) != changes


def test_no_class_token_where_there_is_none():
    bare = replace(ENCODER, class_token=False)
    for changes, words in (
        ({"predict_class": True}, "predict_class must be False for an encoder without"),
        ({}, "student_query must be mean"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(CONFIG, encoder=bare, **changes)
    method = around(replace(CONFIG, encoder=bare, scores=Scores(student_query="mean")))
    assert torch.isfinite(method(batch(), draw(method, batch()))["loss"])
    with pytest.raises(ValueError, match="for a teacher without a class token"):
        around(replace(CONFIG, predict_class=True), Given(num_prefix=0))
    mute = Given()
    mute.queries = ()
    with pytest.raises(ValueError, match="must have attention over patches"):
        CONFIG.build_around(mute)
    replace(CONFIG, masker=RandomMasker()).build_around(mute)


# ------------------------------------------------------------------------------------------------------ who learns what
def test_the_teacher_stands_still_and_the_copy_is_a_moving_average():
    torch.manual_seed(1)
    config = replace(CONFIG, momentum=Momentum(0.9))
    method = config.build().train()
    method.begin(4)
    given = batch()
    frozen = {name: weight.clone() for name, weight in method.teacher.named_parameters()}
    start = method.encoder.norm.bias.detach().clone()
    assert torch.equal(method.student.teacher.encoder.norm.bias, start)
    for step in range(4):
        method(given, draw(method, given, step))["loss"].backward()
        with torch.no_grad():
            method.encoder.norm.bias += 1.0  # a constant update
        method.update_ema(step)
    expected = start + sum(0.1 * 0.9 ** (4 - n) * n for n in range(1, 5))
    torch.testing.assert_close(method.student.teacher.encoder.norm.bias, expected)
    for guide in (method.teacher, method.student):
        assert not guide.training
        assert all(weight.grad is None for weight in guide.parameters())
    assert all(torch.equal(frozen[name], weight) for name, weight in method.teacher.named_parameters())
    assert not any(name.startswith(("teacher", "student")) for name in method.predictor())
    method.reset()
    assert torch.equal(method.student.teacher.encoder.norm.bias, method.encoder.norm.bias)


def test_the_pace_of_the_copy():
    method = replace(CONFIG, half_life=0.5).build()
    method.begin(8)
    method.update_ema(0)
    assert method.student.momentum == pytest.approx(0.5**0.25)
    method = replace(CONFIG, momentum=Momentum(0.9, 1.0)).build()
    method.begin(8)
    for step, expected in ((3, 0.95), (7, 1.0)):
        method.update_ema(step)
        assert method.student.momentum == pytest.approx(expected)


def test_stages_and_schedules():
    mixing = Mixing(teacher_weight=0.2, target_teacher_weight=0.6, warmup_share=0.2, schedule="linear", start=1.0)
    found = [mixing.at(step, 12) for step in range(12)]
    assert found[:4] == [(1.0, 1.0)] * 4  # three of the first phase, and the schedule's first
    assert found[-1] == (pytest.approx(0.2), pytest.approx(0.6))
    assert found[7][0] == pytest.approx(0.6)
    cosine = replace(mixing, schedule="cosine", stage_mode="joint", start=0.0)
    assert cosine.at(0, 11) == (0.0, 0.0)
    assert cosine.at(5, 11)[0] == pytest.approx(0.1)
    assert cosine.reach(cosine.mask) == (0.0, 0.2)
    assert Mixing(stage_mode="joint").at(5) == (0.5, 0.5)
    assert Mixing(teacher_weight=1.0).at(5) == (1.0, 1.0)
    with pytest.raises(ValueError, match="length of the run"):
        mixing.at(0)


def test_what_cannot_be():
    for broken, words in (
        ({"teacher_weight": 30.0}, "must be in"),
        ({"schedule": "linear"}, "start goes with a schedule"),
        ({"start": 0.5}, "start goes with a schedule"),
        ({"teacher_weight": 0.0}, "stage_mode must be joint"),
    ):
        with pytest.raises(ValueError, match=words):
            Mixing(**broken)
    apart = Mixing(mask_teacher_weight=0.3, target_teacher_weight=0.3)
    for changes, words in (
        ({"masker": BlockMasker(ratio=0.4, exact=False, min_area=2)}, "number varies"),
        ({"masker": RandomMasker(), "mixing": apart}, "mask_teacher_weight must be left out"),
        ({"target_mode": "concat", "mixing": apart}, "target_teacher_weight must be left out"),
        ({"target_mode": "concat", "shared_head": True}, "goes with weighted"),
        ({"pixel_weight": -1.0}, "pixel_weight"),
        ({"half_life": 2.0}, "share of the run's steps"),
        ({"half_life": 0.1, "momentum": Momentum(0.9)}, "half_life must be None where a momentum is given"),
        ({"masker": RandomMasker(), "scores": Scores(temperature=0.5)}, "scores must be left out"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(CONFIG, **changes)
    for changes in ({"target_mode": "blend"}, {"shared_head": True}):
        with pytest.raises(ValueError, match="of another width"):
            replace(CONFIG, **changes).build_around(Given(width=24))
    with pytest.raises(ValueError, match="there is no default"):
        replace(CONFIG, teacher=TeacherConfig()).build()
    with pytest.raises(ValueError, match=r"temperature must be above 0"):
        Scores(temperature=0.0)


def test_what_it_says_of_itself_and_costs():
    rows = dict(CONFIG.describe())
    assert rows["student sees"].startswith("B x 5 x 16: visible patches")
    for name in ("teacher sees", "copy sees"):
        assert "all 16 patches of the same image, none hidden" in rows[name]
    assert rows["predicts"].startswith("B x 12 x features (weighted)")
    assert dict(replace(CONFIG, mixing=ALONE).describe())["student's copy"] == "there is none"
    assert dict(replace(CONFIG, mixing=WITHOUT).describe())["teacher"] == "none is asked"
    assert rows["teacher's weight"] == "0.5 in the mask, 0.5 in the target"
    unguided = replace(CONFIG, masker=RandomMasker(), mixing=Mixing())
    assert unguided.weights == "0.5 in the target, 1 in the first 10 % of the steps"
    assert replace(CONFIG, target_mode="concat").weights == "0.5 in the mask; both features count alike in the target"
    assert replace(unguided, target_mode="concat").weights == "none; both features count alike in the target"
    assert from_dict(CMTMAEConfig, to_dict(CONFIG), "here") == CONFIG
    both, alone, named = (
        count_cost(Pretrain("tiny", method=config), torch.float32)
        for config in (CONFIG, replace(CONFIG, mixing=ALONE), replace(CONFIG, teacher=TeacherConfig()))
    )
    assert both.draw_flops == 2 * alone.draw_flops == 2 * named.draw_flops > both.flops
    assert isinstance(CONFIG.build(), CMTMAE)


def test_the_targets_of_hidden_patches_are_those_of_their_places():
    method, given = around(CONFIG), batch()
    draws = draw(method, given)
    said = take(method.teacher.tokens[:, 1:], draws.mask.ids_mask)
    expected = (said - said.mean(2, keepdim=True)) / (said.var(2, correction=0, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(draws.teacher, expected)


def test_the_same_images_are_looked_at_through_the_run():
    method, first, later = around(replace(CONFIG, mixing=JOINT)), batch(seed=1), batch(seed=2)
    method.begin(211)  # a look every ten steps
    draws = draw(method, first, 0)
    record = method.record
    assert torch.equal(record.images, first.images[torch.arange(8) % 3])
    assert math.isnan(draws.facts["overlap"])
    assert torch.equal(record.steps, torch.tensor([0] + [-1] * 21))
    draw(method, later, 5)
    assert record.steps[1] == -1
    with torch.no_grad():
        for weight in method.student.parameters():
            weight.add_(torch.randn(weight.shape))
    draws = draw(method, later, 10)
    assert torch.equal(record.images, first.images[torch.arange(8) % 3])
    teacher, student, mixed = record.maps[:2].unbind(dim=1)
    assert torch.equal(teacher[0], teacher[1])
    assert not torch.allclose(student[0], student[1])
    torch.testing.assert_close(mixed, (teacher + student) / 2)
    for look in range(2):  # three quarters of sixteen, those of the highest scores
        assert torch.equal(record.masked[look], mixed[look] >= mixed[look].sort(dim=1).values[:, 4:5])
    both = (record.masked[0] & record.masked[1]).sum() / (8 * 12)
    assert draws.facts["overlap"] == both
    assert 0.5 < both < 1
    assert draw(method, later, 19).facts["overlap"] == both
    assert draw(method, later, 20).facts["overlap"] == 1  # nothing has moved since


def test_looking_changes_no_draw():
    one, other = around(CONFIG), around(CONFIG)
    one.begin(22)
    other.begin(22)
    other.record.begin(2)
    for step in (3, 4):
        ours, theirs = draw(one, batch(), step), draw(other, batch(), step)
        assert torch.equal(ours.mask.masked, theirs.mask.masked)
    assert one.record.steps.max() == 4
    assert other.record.steps.max() == -1


def test_a_collapsed_copy_is_said():
    tokens = torch.randn(64, 16, 32)
    assert deviation(tokens) == pytest.approx(1, abs=0.1)
    assert deviation(3 * tokens + 300) < COLLAPSED
    assert deviation(tokens[:1]).isnan()  # one image says nothing
    assert deviation(tokens[:1].expand(64, 16, 32)) == 0  # what differs from place to place, and not between images
    method = CONFIG.build()
    given = batch()
    method.begin(4)
    assert draw(method, given).facts["student_std"] > COLLAPSED
    with torch.no_grad():
        method.student.teacher.encoder.patch_embed.proj.weight.zero_()  # it no longer sees the image
    blind = draw(method, given).facts["student_std"].item()
    for logged in ({"student_std": 0.04}, {"student_std": blind}):
        assert "have collapsed" in method.warning(logged)
    for logged in ({"student_std": 0.3}, {"student_std": None}, {"student_std": math.nan}, {}):
        assert method.warning(logged) is None
    advice = replace(CONFIG, half_life=0.1).build().warning({"student_std": 0.0})
    assert "--method.half-life" in advice
    assert "--method.momentum.start" in method.warning({"student_std": 0.0})


def test_parts_of_a_step_are_looked_at_as_one():
    method, first, second = CONFIG.build(), batch(seed=1), batch(seed=2)
    method.begin(22)
    for part in (first, second):
        draws = draw(method, part, 0)
    assert torch.equal(method.record.images, first.images[torch.arange(8) % 3])
    draw(method, first, 1)
    overlaps = [draw(method, part, 1).facts["overlap"] for part in (first, second)]
    assert overlaps[0] == overlaps[1]
    assert math.isnan(draws.facts["overlap"])


def test_a_register_is_no_class_token():
    registers = replace(ENCODER, class_token=False, registers=2)
    teacher = EncoderTeacher(registers.build(), "with registers")
    assert teacher(batch().images).prefix.shape[1] == 2
    config = replace(CONFIG, predict_class=True, scores=Scores(teacher_query="mean"))
    with pytest.raises(ValueError, match="predict_class must be False for a teacher without a class token"):
        config.build_around(teacher)
    replace(config, predict_class=False).build_around(teacher)


def test_a_teacher_on_another_grid_is_refused():
    teacher = Given()
    teacher.grid = (2, 8)
    with pytest.raises(ValueError, match="must have the student's grid of 4 x 4 patches; got 2 x 8"):
        CONFIG.build_around(teacher)


def test_the_query_that_is_asked_for_decides():
    class Two(Given):
        def forward(self, images, query=None):
            said = super().forward(images, query)
            return said if query != "mean" else said._replace(attention=said.attention.flip(1))

    alone = replace(CONFIG, mixing=ALONE)
    by_class, by_mean = (
        draw(replace(alone, scores=Scores(teacher_query=query)).build_around(Two()), batch()).mask.masked
        for query in ("class", "mean")
    )
    assert torch.equal(by_class, by_mean.flip(1))
    assert not torch.equal(by_class, by_mean)


def test_what_the_copy_says_is_taken_after_its_norm_or_before():
    after, before = (around(replace(CONFIG, student_output=output)) for output in ("norm", "block"))
    ones, others = (draw(method, batch()).student for method in (after, before))
    assert not torch.allclose(ones, others)
    copied = before.student.teacher
    assert copied.output == "block"


def test_concat_predicts_both_throughout_or_is_refused():
    both = replace(CONFIG, target_mode="concat", mixing=Mixing(warmup_share=0.5)).build_around(Given())
    both.begin(10)
    draws = draw(both, batch(), 0)  # in the first phase of the mask
    assert draws.student is not None
    assert draws.student.abs().max() > 0
    assert "target_teacher_weight" not in draws.facts
    for weight in (0.0, 1.0):
        with pytest.raises(ValueError, match="target_mode must be weighted where one network alone"):
            replace(CONFIG, target_mode="concat", mixing=Mixing(teacher_weight=weight, stage_mode="joint"))
    replace(CONFIG, target_mode="concat", mixing=Mixing(mask_teacher_weight=1.0))


def test_small_temperatures_stay_finite():
    attention = torch.rand(3, 196) / 196
    scores = Scores(temperature=0.01)(attention)
    assert scores.isfinite().all()
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(3))
    assert torch.equal(scores.argmax(dim=1), attention.argmax(dim=1))
    mild = Scores(temperature=0.5)(attention)
    torch.testing.assert_close(mild, attention**2 / (attention**2).sum(dim=1, keepdim=True))


def test_guided_at_one_is_the_teachers_mask_alone():
    method, given = around(replace(CONFIG, mixing=ALONE)), batch()
    attention = method.teacher.attention
    assert torch.equal(draw(method, given).mask.masked, attention >= attention.sort(dim=1).values[:, 4:5])


def test_the_copys_attention_may_have_any_scale():
    method, given = around(CONFIG), batch()
    before = draw(method, given).mask.masked
    forward = method.student.forward

    def louder(images, query=None):
        said = forward(images, query)
        return said._replace(attention=7 * said.attention)

    method.student.forward = louder
    assert torch.equal(draw(method, given).mask.masked, before)
