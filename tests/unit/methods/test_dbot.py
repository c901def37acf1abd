from dataclasses import replace

import pytest
import torch
from tiny import DECODER, ENCODER

from pantomim.core.batch import Batch
from pantomim.core.mask import Mask
from pantomim.masking.block import BlockMasker
from pantomim.methods.dbot import DBOTConfig
from pantomim.targets.distance import Distance
from pantomim.teachers.base import Guidance, Teacher
from pantomim.teachers.choice import TeacherConfig

CONFIG = DBOTConfig(encoder=ENCODER, decoder=DECODER)


class Given(Teacher):
    """Gives the tokens that it has; prefix tokens first."""

    def __init__(self, tokens, num_prefix=1):
        super().__init__()
        self.tokens, self.num_prefix = tokens, num_prefix
        self.width, self.grid = tokens.shape[2], (4, 4)
        self.seen = []
        self.requires_grad_(False).eval()

    def forward(self, images, query=None):
        self.seen.append(images)
        return Guidance(self.tokens[:, : self.num_prefix], self.tokens[:, self.num_prefix :])


def step(method, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch = Batch(torch.rand(3, 3, 16, 16, generator=generator), total=3)
    return batch, method.draw(batch, 0, generator)


def tokens(width=16, seed=5):
    return torch.randn(3, 17, width, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def test_the_loss_is_that_of_the_class_token_and_the_masked_patches():
    features = tokens()
    method = CONFIG.build(teacher=Given(features))
    batch, draws = step(method)
    loss = method(batch, draws)["loss"]
    prediction = method.decoder(
        method.encoder(batch.images, draws.mask.ids_keep), draws.mask, everywhere=True, with_class=True
    )
    counted = torch.cat([torch.ones(3, 1, dtype=torch.bool), draws.mask.masked], dim=1)
    assert counted.sum() == 3 * 13
    target = (features - features.mean(2, keepdim=True)) / (features.var(2, keepdim=True) + 1e-6).sqrt()  # unbiased
    difference = (prediction - target).abs()
    each = torch.where(difference < 2, difference.square() / 4, difference - 1).mean(dim=2)
    torch.testing.assert_close(loss, each[counted].mean())


def test_visible_patches_of_the_teacher_do_not_count():
    method = CONFIG.build(teacher=Given(tokens()))
    batch, draws = step(method)
    loss = method(batch, draws)["loss"]
    patches = method.teacher.tokens[:, 1:]
    patches[~draws.mask.masked] += torch.randn(12, 16)
    assert torch.equal(method(batch, draws)["loss"], loss)
    patches[draws.mask.masked] += torch.randn(36, 16)
    assert not torch.equal(method(batch, draws)["loss"], loss)


def test_the_class_token_counts_unless_it_is_left_out():
    features = tokens()
    with_class, without = (
        replace(CONFIG, predict_class=predict).build(teacher=Given(features.clone())) for predict in (True, False)
    )
    for method, counts in ((with_class, True), (without, False)):
        batch, draws = step(method)
        loss = method(batch, draws)["loss"]
        method.teacher.tokens[:, 0] += torch.randn(3, 16)
        assert torch.equal(method(batch, draws)["loss"], loss) != counts


def test_teacher_and_student_see_the_same_images_and_the_teacher_all_of_them():
    method = replace(CONFIG, teacher=TeacherConfig(source="random")).build()
    batch, draws = step(method)
    seen = {}
    for name, module in (("student", method.encoder.patch_embed), ("teacher", method.teacher.encoder.patch_embed)):
        module.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given}))
    method(batch, draws)
    assert torch.equal(seen["student"][0], seen["teacher"][0])
    assert seen["student"][1].shape == (3, 4)
    assert seen["teacher"][1] is None


def test_the_random_teacher_is_the_student_as_it_begins_and_learns_nothing():
    torch.manual_seed(3)
    method = CONFIG.build().train()
    ours, theirs = dict(method.encoder.named_parameters()), dict(method.teacher.encoder.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not method.teacher.training
    method(*step(method))["loss"].backward()
    assert all(weight.grad is None for weight in theirs.values())
    without = {name for name, weight in method.named_parameters() if weight.requires_grad and weight.grad is None}
    assert not without
    before = {name: weight.clone() for name, weight in theirs.items()}
    method.update_ema(0)
    assert all(torch.equal(before[name], weight) for name, weight in theirs.items())


def test_a_teacher_without_blocks_still_knows_positions():
    method = replace(CONFIG, teacher=TeacherConfig(source="random", depth=0)).build()
    images = torch.full((1, 3, 16, 16), 0.7)
    ids = torch.arange(16).unsqueeze(0)
    target = method.target(method.teacher(images), ids)
    assert len({tuple(token.tolist()) for token in target[0, 1:]}) == 16  # equal pixels, other places
    same = method.teacher.encoder.embed(images)
    torch.testing.assert_close(
        target[:, 1:], (same - same.mean(2, keepdim=True)) / (same.var(2, keepdim=True) + 1e-6).sqrt()
    )


def test_a_moving_average_follows_the_student():
    method = replace(CONFIG, teacher=TeacherConfig(source="ema", momentum=0.75)).build()
    with torch.no_grad():
        method.encoder.norm.weight.fill_(5.0)
    method.update_ema(0)
    torch.testing.assert_close(method.teacher.encoder.norm.weight, torch.full((16,), 2.0))
    method.reset()
    torch.testing.assert_close(method.teacher.encoder.norm.weight, torch.full((16,), 5.0))


def test_the_decoder_is_as_wide_as_the_teacher():
    method = CONFIG.build(teacher=Given(tokens(width=24)))
    assert method.decoder.decoder_pred.out_features == 24
    assert torch.isfinite(method(*step(method))["loss"])


@pytest.mark.parametrize("normalise", ["unbiased", "none"])
@pytest.mark.parametrize("form", ["l1", "l2", "cosine"])
def test_other_distances_and_targets(form, normalise):
    features = tokens()
    method = replace(CONFIG, distance=Distance(form), normalise=normalise).build(teacher=Given(features))
    batch, draws = step(method)
    latent = method.encoder(batch.images, draws.mask.ids_keep)
    prediction = method.decoder(latent, draws.mask, with_class=True)
    target = method.target(method.teacher(batch.images), draws.mask.ids_mask)
    if normalise == "none":
        assert torch.equal(target[:, 0], features[:, 0])
    expected = {
        "l1": (prediction - target).abs().mean(),
        "l2": (prediction - target).square().mean(),
        "cosine": 1 - torch.nn.functional.cosine_similarity(prediction, target, dim=2).mean(),
    }[form]
    torch.testing.assert_close(method(batch, draws)["loss"], expected)


def test_the_target_is_float32_where_the_teacher_is_less():
    method = CONFIG.build(teacher=Given(tokens().bfloat16()))
    batch, draws = step(method)
    assert method.target(method.teacher(batch.images), draws.mask.ids_mask).dtype == torch.float32


def test_a_step_draws_the_rows_of_the_global_batch():
    method = CONFIG.build()
    images = torch.rand(4, 3, 16, 16)
    whole = method.draw(Batch(images, total=4), 0, torch.Generator().manual_seed(1))
    half = method.draw(Batch(images[2:], start=2, total=4), 0, torch.Generator().manual_seed(1))
    assert isinstance(half.mask, Mask)
    assert torch.equal(whole.mask.ids_mask[2:], half.mask.ids_mask)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="number varies"):
        replace(CONFIG, masker=BlockMasker(ratio=0.4, exact=False, min_area=2))
    with pytest.raises(ValueError, match="predict_class must be None or False where student or teacher"):
        replace(CONFIG, encoder=replace(ENCODER, class_token=False)).build()
    with pytest.raises(ValueError, match="student or teacher has no class token"):  # before the first step
        CONFIG.build(teacher=Given(tokens()[:, 1:], num_prefix=0))
    patches_only = replace(CONFIG, encoder=replace(ENCODER, class_token=False), predict_class=False)
    method = patches_only.build(teacher=Given(tokens()[:, 1:], num_prefix=0))
    assert torch.isfinite(method(*step(method))["loss"])


def test_each_teacher_decides_on_the_class_token_if_nobody_else_does():
    open_ = replace(CONFIG, predict_class=None)
    for features, num_prefix, predicts in ((tokens()[:, 1:], 0, False), (tokens(), 1, True)):
        method = open_.build(teacher=Given(features, num_prefix=num_prefix))
        assert method.predict_class == predicts
        assert torch.isfinite(method(*step(method))["loss"])
    assert not replace(open_, encoder=replace(ENCODER, class_token=False)).build().predict_class
