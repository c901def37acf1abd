import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pantomim.nn.tokens import take
from pantomim.nn.vit import EncoderConfig
from pantomim.targets.distance import Distance
from pantomim.targets.features import FeatureTarget, FeatureTargetConfig
from pantomim.teachers.base import Guidance, Teacher
from pantomim.teachers.choice import TeacherConfig

ENCODER = EncoderConfig(image_size=(8, 12), patch_size=4, width=16, depth=3, heads=2)


class Colours(Teacher):
    """Mean and spread of each channel of a patch; the class token's feature is ones."""

    def __init__(self, grid=(2, 3)) -> None:
        super().__init__()
        self.width, self.grid, self.gain = 6, grid, nn.Parameter(torch.tensor(3.0))
        self.requires_grad_(False).eval()

    def forward(self, images, query=None):
        assert not self.training
        means = F.avg_pool2d(images, 4)
        spread = F.avg_pool2d(images.square(), 4) - means.square()
        patches = self.gain * torch.cat([means, spread], dim=1).flatten(2).mT
        return Guidance(torch.ones_like(patches[:, :1]), patches)


def target_of(grid=(2, 3), **settings) -> FeatureTarget:
    return FeatureTarget(FeatureTargetConfig(**settings), Colours(grid), (2, 3))


def images() -> torch.Tensor:
    return torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("normalise", ["none", "layernorm", "unbiased", "l2"])
def test_features_are_normalised_each_by_itself(normalise) -> None:
    plain = Colours()(images()).patches
    variance = plain.var(dim=-1, keepdim=True)
    expected = {
        "none": plain,
        "layernorm": F.layer_norm(plain, (6,)),
        "unbiased": (plain - plain.mean(dim=-1, keepdim=True)) / (variance + 1e-6).sqrt(),
        "l2": plain / plain.norm(dim=-1, keepdim=True),
    }[normalise]
    torch.testing.assert_close(target_of(normalise=normalise)(images()), expected)


def test_the_score_is_that_of_the_masked_patches() -> None:
    target, ids = target_of(normalise="none", distance=Distance("cosine")), torch.tensor([[0, 5], [3, 1]])
    prediction = torch.randn(2, 2, 6)
    chosen = take(target(images()), ids)
    expected = 1 - F.cosine_similarity(prediction, chosen, dim=-1).mean()
    torch.testing.assert_close(target.loss(prediction, chosen), expected)
    spread = target.metrics(prediction, chosen)["target_std"]
    torch.testing.assert_close(spread, chosen.flatten(0, 1).std(dim=0).mean())
    assert target.loss(chosen, chosen) < 1e-6


def test_nothing_is_learned_in_it_nor_in_training_mode() -> None:
    target = target_of()
    nn.ModuleList([target]).train()
    assert not any(module.training for module in target.modules())
    assert not any(parameter.requires_grad for parameter in target.parameters())
    assert not target(images().requires_grad_()).requires_grad
    assert torch.equal(target(images()), target(images()))


def test_the_grids_must_agree() -> None:
    with pytest.raises(ValueError, match=r"FeatureTarget\.teacher must have a feature for each patch.*\(2, 3\)"):
        target_of((4, 4))


def test_there_is_no_teacher_by_default() -> None:
    with pytest.raises(ValueError, match=r"FeatureTargetConfig\.teacher must be given.*random.*ema"):
        FeatureTargetConfig().build(ENCODER.build())


@pytest.mark.parametrize(("momentum", "expected"), [(1.0, "stays"), (0.0, "follows")])
def test_a_moving_average_follows_its_student(momentum: float, expected: str) -> None:
    """With momentum 1 the target never changes; with 0 the teacher is the student."""
    torch.manual_seed(0)
    student = ENCODER.build()
    target = FeatureTargetConfig(teacher=TeacherConfig("ema", momentum=momentum, blocks=2)).build(student)
    before = target(images())
    with torch.no_grad():
        for parameter in filter(lambda weight: weight.requires_grad, student.parameters()):  # positions are fixed
            parameter.add_(0.1 * torch.randn_like(parameter))
    target.teacher.update_ema(nn.ModuleDict({"encoder": student}), 0)
    after = target(images())
    assert torch.equal(after, before) == (expected == "stays")
    if expected == "follows":
        found = [block.patches for block in student.each_block(images())][-2:]
        mean = torch.stack([F.layer_norm(tokens, (16,)) for tokens in found]).mean(dim=0)
        torch.testing.assert_close(after, F.layer_norm(mean, (16,)))
    target.teacher.reset(nn.ModuleDict({"encoder": student}))
    assert not torch.equal(target(images()), before)
