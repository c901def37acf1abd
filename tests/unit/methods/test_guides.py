from dataclasses import replace

import pytest
import torch
from tiny import DECODER, ENCODER

from pantomim.config import Pretrain
from pantomim.core.batch import Batch
from pantomim.explain import count_cost, explain
from pantomim.masking.attention import AttentionMasker
from pantomim.masking.random import RandomMasker
from pantomim.methods.beit import BEiTConfig
from pantomim.methods.cae import CAEConfig
from pantomim.methods.dbot import DBOTConfig
from pantomim.methods.guides import GuideConfig, MaskGuide, draw_mask
from pantomim.methods.mae import MAEConfig
from pantomim.nn.regressor import RegressorConfig
from pantomim.targets.pixels import PixelTargetConfig
from pantomim.teachers.base import Guidance, Teacher
from pantomim.teachers.choice import TeacherConfig

GUIDED, GUIDE = AttentionMasker(ratio=0.5), GuideConfig(source="random")
PARTS = {"encoder": ENCODER, "masker": GUIDED, "guide": GUIDE, "target": PixelTargetConfig()}
CONFIGS = {
    "mae": MAEConfig(decoder=DECODER, **PARTS),
    "beit": BEiTConfig(**PARTS),
    "cae": CAEConfig(regressor=RegressorConfig(depth=1), **PARTS),
}


def batch(number=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.rand(number, 3, 16, 16, generator=generator), total=number)


def build(config, seed=1):
    torch.manual_seed(seed)
    return config.build()


def loosen(module, seed=2):
    """Weights whose attention is not even."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight += 0.3 * torch.randn(weight.shape)


def draw(method, given, seed=0):
    return method.draw(given, 0, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_most_attended_are_masked_and_the_method_learns(kind):
    method, given = build(CONFIGS[kind]), batch()
    loosen(method.guide.teacher)
    attention = method.guide(given.images)
    draws = draw(method, given)
    assert torch.equal(draws.mask.masked, attention >= attention.sort(dim=1).values[:, 8:9])
    method(given, draws)["loss"].backward()
    assert all(weight.grad is not None for weight in method.encoder.patch_embed.parameters())
    assert all(weight.grad is None for weight in method.guide.parameters())
    assert not any(weight.requires_grad for weight in method.guide.parameters())
    assert not any(name.startswith("guide") for name in method.exports().get("predictor", {}))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_moving_average_guides_as_the_student_moves(kind):
    method = build(replace(CONFIGS[kind], guide=GuideConfig(source="ema", momentum=0.5))).train()
    slow, fast = method.guide.teacher.encoder.norm.weight, method.encoder.norm.weight
    assert torch.equal(slow, fast)
    with torch.no_grad():
        fast += 1.0
    method.update_ema(0)
    torch.testing.assert_close(slow, fast.detach() - 0.5)
    method.reset()
    assert torch.equal(slow, fast)


@pytest.mark.parametrize("kind", CONFIGS)
def test_without_a_guide_all_is_as_ever(kind):
    config = replace(CONFIGS[kind], masker=RandomMasker(ratio=0.5), guide=GuideConfig())
    method, given = build(config), batch()
    assert method.guide(given.images) is None
    assert not any(name.startswith("guide") for name in method.state_dict())
    expected = config.masker(3, ENCODER.grid, torch.Generator().manual_seed(0)).masked
    assert torch.equal(draw(method, given).mask.masked, expected)


@pytest.mark.parametrize("kind", CONFIGS)
def test_masker_and_guide_go_together(kind):
    with pytest.raises(ValueError, match=r"GuideConfig.source must be given.*method.guide.source: RUN"):
        replace(CONFIGS[kind], guide=GuideConfig()).build()
    with pytest.raises(ValueError, match="GuideConfig must be left out for a masker that asks for no attention"):
        replace(CONFIGS[kind], masker=RandomMasker(ratio=0.5)).build()


def test_the_mean_query_where_there_is_no_class_token():
    bare = replace(CONFIGS["mae"], encoder=replace(ENCODER, class_token=False))
    with pytest.raises(ValueError, match=r"must be mean for random.*guide.query\) to mean"):
        bare.build()
    method = replace(bare, guide=replace(GUIDE, query="mean")).build()
    assert torch.isfinite(method(batch(), draw(method, batch()))["loss"])


def test_explain_counts_the_guide_and_says_that_it_sees_everything():
    config = Pretrain("tiny", method=CONFIGS["mae"])
    plain = replace(config, method=replace(CONFIGS["mae"], masker=RandomMasker(ratio=0.5), guide=GuideConfig()))
    guided, alone = (count_cost(each, torch.float32) for each in (config, plain))
    assert alone.draw_flops == 0
    assert guided.flops == alone.flops
    encoder = ENCODER.build()
    all_tokens = 2 * 17 * sum(w.numel() for n, w in encoder.named_parameters() if n.endswith("weight") and w.dim() == 2)
    assert guided.draw_flops > all_tokens  # attention comes on top
    rows = dict(dict(explain(config, plain, torch.float32))["Parts and shapes"])
    assert rows["guide"] == "B x 3 x 16 x 16 -> B x 16, no gradient"
    assert "patches B x 16 x 16, attention B x 16, no gradient" in rows["guide.teacher"]  # it sees every patch


class Counting(Teacher):
    """Attends to the patches from the last to the first, and counts how often it is asked."""

    queries = ("class",)

    def __init__(self):
        super().__init__()
        self.name, self.width, self.grid, self.num_prefix, self.asked = "Counting", 16, (4, 4), 1, []
        self.requires_grad_(False).eval()

    def forward(self, images, query=None):
        self.asked.append(query)
        features = images.flatten(1)[:, : 17 * 16].unflatten(1, (17, 16))
        attention = None if query is None else torch.arange(16.0).expand(len(images), 16)
        return Guidance(features[:, :1], features[:, 1:], attention)


def test_dbots_own_teacher_guides_and_is_asked_once():
    config = DBOTConfig(encoder=ENCODER, decoder=DECODER, masker=GUIDED, teacher=TeacherConfig("random"))
    method, given = config.build(teacher=Counting()), batch()
    draws = draw(method, given)
    assert torch.equal(draws.mask.masked, (torch.arange(16) >= 8).expand(3, 16))
    guided = method(given, draws)["loss"]
    assert method.teacher.asked == ["class"]
    torch.testing.assert_close(method(given, replace(draws, guidance=None))["loss"], guided)
    with pytest.raises(ValueError, match="must be class for Counting; got mean"):
        replace(config, guide_query="mean").build(teacher=Counting())
    count_cost(Pretrain("tiny", method=config), torch.float32)


def test_rows_of_another_process_do_not_matter():
    guide, whole = MaskGuide(Counting(), "class"), batch(6)
    masker = AttentionMasker(rule="sample_masked", ratio=0.5)

    def masks(part):
        return draw_mask(masker, part, (4, 4), torch.Generator().manual_seed(3), guide(part.images)).masked

    together = masks(whole)
    for start in (0, 3):
        part = Batch(whole.images[start : start + 3], start=start, total=6)
        assert torch.equal(masks(part), together[start : start + 3])
