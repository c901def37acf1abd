import copy
from dataclasses import replace

import pytest
import tiny
import torch
from torch import nn
from torch.nn import functional as F

from pantomim.formats.native import save_encoder
from pantomim.nn.momentum import Momentum
from pantomim.nn.vit import Encoder, EncoderConfig
from pantomim.teachers.choice import TeacherConfig
from pantomim.teachers.encoder import EMATeacher

RELATIVE = replace(
    tiny.ENCODER,
    position="none",
    relative_position="blocks",
    attention_bias="qv",
    layer_scale=0.5,
    initialisation="cae",
)
SHARED = replace(RELATIVE, relative_position="shared")


def student(config: EncoderConfig = tiny.ENCODER) -> Encoder:
    torch.manual_seed(0)
    encoder = config.build()
    with torch.no_grad():  # tables of relative positions are zeros at first
        for parameter in encoder.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return encoder


def images(side: int = 16) -> torch.Tensor:
    return torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_random_is_an_exact_copy_of_the_student():
    encoder = student()
    teacher = TeacherConfig("random").build(encoder)
    *_, last = encoder.eval().each_block(images())
    found = teacher(images())
    torch.testing.assert_close(found.patches, last.patches, rtol=0, atol=0)
    torch.testing.assert_close(found.prefix, last.prefix, rtol=0, atol=0)
    with torch.no_grad():
        encoder.cls_token.add_(1)
    torch.testing.assert_close(teacher(images()).prefix, last.prefix, rtol=0, atol=0)
    assert (teacher.width, teacher.grid, teacher.frozen) == (16, (4, 4), True)


@pytest.mark.parametrize("depth", [0, 1])
def test_the_first_blocks_of_the_student(depth):
    encoder = student()
    teacher = TeacherConfig("random", depth=depth).build(encoder)
    tokens, *_ = encoder.enter(images())
    expected = tokens if depth == 0 else encoder.blocks[0](tokens)[0]
    found = teacher(images())
    torch.testing.assert_close(torch.cat([found.prefix, found.patches], dim=1), expected.detach(), rtol=0, atol=0)
    assert teacher.queries == (() if depth == 0 else ("class", "mean"))


def test_after_the_final_norm():
    encoder = student()
    found = TeacherConfig("random", output="norm").build(encoder)(images())
    torch.testing.assert_close(found.patches, encoder.eval()(images()).patches.detach(), rtol=0, atol=0)


def test_mean_over_standardised_blocks():
    encoder = student().eval()
    found = TeacherConfig("random", blocks=2).build(encoder)(images())
    each = [F.layer_norm(block.patches, (16,)) for block in encoder.each_block(images())]
    torch.testing.assert_close(found.patches, ((each[0] + each[1]) / 2).detach())


@pytest.mark.parametrize("config", [tiny.ENCODER, RELATIVE, SHARED], ids=["mae", "cae", "beit"])
def test_attention_is_that_of_the_last_block(config):
    encoder = student(config).eval()
    teacher = TeacherConfig("random").build(encoder)
    *_, last = encoder.each_block(images(), need_attention=True)
    full = last.attention.detach().mean(dim=1)  # (B, T, T)
    torch.testing.assert_close(teacher(images(), "class").attention, full[:, 0, 1:])
    torch.testing.assert_close(teacher(images(), "mean").attention, full[:, 1:, 1:].mean(dim=1))
    assert teacher(images()).attention is None
    torch.testing.assert_close(teacher(images(), "class").patches, teacher(images()).patches, rtol=0, atol=0)


def test_attention_that_is_not_there():
    with pytest.raises(ValueError, match="has none"):
        TeacherConfig("random", depth=0).build(student())(images(), "mean")
    teacher = TeacherConfig("random").build(student(replace(tiny.ENCODER, class_token=False)))
    with pytest.raises(ValueError, match="must be mean"):
        teacher(images(), "class")
    assert teacher(images(), "mean").attention.shape == (3, 16)


@pytest.mark.parametrize("source", ["random", "ema"])
def test_no_gradient_and_always_in_evaluation(source):
    encoder = student(replace(tiny.ENCODER, drop_path=0.9))
    teacher = TeacherConfig(source).build(encoder).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    given = images().requires_grad_()
    assert not teacher(given, "class").patches.requires_grad
    torch.testing.assert_close(teacher(images()).patches, teacher(images()).patches, rtol=0, atol=0)


def test_ema_moves_and_copies():
    encoder = student()
    teacher = TeacherConfig("ema", momentum=0.75).build(encoder)
    assert isinstance(teacher, EMATeacher)
    assert not teacher.frozen
    before = copy.deepcopy(encoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1.0)
        encoder.mean.add_(0.25)
    teacher.update_ema(nn.ModuleDict({"encoder": encoder}), 0)
    inner = teacher.encoder
    torch.testing.assert_close(inner.cls_token, before.cls_token + 0.25)
    torch.testing.assert_close(inner.blocks[1].mlp.fc1.weight, before.blocks[1].mlp.fc1.weight + 0.25)
    torch.testing.assert_close(inner.pos_embed, before.pos_embed + 1.0)  # fixed: copied
    torch.testing.assert_close(inner.mean, before.mean + 0.25)  # a buffer: copied
    teacher.update_ema(nn.ModuleDict({"encoder": encoder}), 0)
    torch.testing.assert_close(inner.cls_token, before.cls_token + 0.4375)
    teacher.reset(nn.ModuleDict({"encoder": encoder}))
    assert all(torch.equal(a, b) for a, b in zip(inner.parameters(), encoder.parameters(), strict=True))


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_ema_at_its_ends(momentum):
    encoder = student()
    teacher = TeacherConfig("ema", momentum=momentum).build(encoder)
    first = teacher(images()).patches
    with torch.no_grad():
        encoder.blocks[0].mlp.fc2.weight.add_(1.0)
    teacher.update_ema(nn.ModuleDict({"encoder": encoder}), 0)
    expected = first if momentum else TeacherConfig("random").build(encoder)(images()).patches
    torch.testing.assert_close(teacher(images()).patches, expected, rtol=0, atol=0)


def test_starting_anew_leaves_a_random_teacher_random():
    encoder = student()
    teacher = TeacherConfig("random").build(encoder)
    first = teacher(images()).patches
    with torch.no_grad():
        encoder.blocks[0].mlp.fc2.weight.add_(1.0)
    torch.testing.assert_close(teacher(images()).patches, first, rtol=0, atol=0)


def test_a_run_as_teacher(tmp_path):
    save_encoder(tmp_path, student(), scale={}, recipe="tiny")
    torch.manual_seed(5)
    teacher = TeacherConfig(str(tmp_path)).build(tiny.ENCODER.build())
    torch.testing.assert_close(teacher(images()).patches, TeacherConfig("random").build(student())(images()).patches)
    assert teacher.name == str(tmp_path)


def test_the_input_is_resized_so_that_grids_agree(tmp_path):
    """A teacher with patches of 2 on 8 pixels for a student with patches of 4 on 24: it sees 12."""
    theirs = replace(tiny.ENCODER, image_size=(8, 8), patch_size=2)
    save_encoder(tmp_path, student(theirs), scale={}, recipe="tiny")
    ours = replace(tiny.ENCODER, image_size=(24, 24))
    teacher = TeacherConfig(str(tmp_path)).build(ours.build())
    assert teacher.grid == (6, 6)
    assert teacher(images(24), "class").attention.shape == (3, 36)
    assert teacher.image_size == (12, 12)
    plain = torch.full((1, 3, 24, 24), 0.3)
    small = torch.full((1, 3, 12, 12), 0.3)
    torch.testing.assert_close(teacher(plain).patches, teacher(small).patches, rtol=1e-4, atol=1e-4)


def test_whose_statistics(tmp_path):
    save_encoder(tmp_path, student(), scale={}, recipe="tiny")
    ours = replace(tiny.ENCODER, mean=(0.0,) * 3, std=(1.0,) * 3).build()
    own = TeacherConfig(str(tmp_path)).build(ours)(images()).patches
    students = TeacherConfig(str(tmp_path), statistics="student").build(ours)(images() / 0.3 - 0.5 / 0.3).patches
    torch.testing.assert_close(own, students, rtol=1e-4, atol=1e-5)


def test_on_a_cpu_it_stays_in_float32():
    teacher = TeacherConfig("random").build(student())
    plain = teacher(images()).patches
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(teacher(images()).patches, plain, rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("source", ["random", "ema"])
def test_on_a_gpu_it_stays_in_float32_where_asked(source):
    plain, exact = (TeacherConfig(source, precision=kind).build(student()).cuda() for kind in (None, "float32"))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert plain(images().cuda()).patches.dtype == torch.bfloat16
        found = exact(images().cuda()).patches
    torch.testing.assert_close(found, exact(images().cuda()).patches, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "dalle:x", "precision": "float32"}, "precision must be left out for dalle:x"),
        ({"source": "ema", "depth": 1}, "depth must be left out"),
        ({"source": "random", "depth": -1}, "must be at least 0"),
        ({"source": "random", "blocks": 0}, "at least 1"),
        ({"source": "random", "blocks": 2, "output": "norm"}, "output must be block"),
        ({"source": "ema", "momentum": 1.5}, r"momentum must be in \[0, 1\]"),
        ({"source": "random", "momentum": 0.9}, "momentum must be left out for random; got 0.9"),
        ({"momentum": 0.9}, r"left out for \(none\); got 0.9"),
        ({"source": "random", "statistics": "student"}, "statistics must be left out for random; got student"),
        ({"source": "ema", "statistics": "own"}, "statistics must be left out for ema"),
        ({"source": "dalle:FILE", "statistics": "own"}, "statistics must be left out for dalle:FILE"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TeacherConfig(**settings)


def test_another_network_gets_only_what_goes_with_it():
    assert TeacherConfig("ema", blocks=2, momentum=0.5).of("RUN") == TeacherConfig("RUN", blocks=2)
    assert TeacherConfig("random", depth=0).of("ema") == TeacherConfig("ema")
    clip = TeacherConfig(output="projection", statistics="student")
    assert clip.of("clip:FILE") == replace(clip, source="clip:FILE")
    assert clip.of("random").statistics is None


def test_the_momentum_of_long_runs_is_the_default():
    assert TeacherConfig("ema").build(student()).momentum == Momentum(0.9998)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TeacherConfig(), "as there is no default"),
        (TeacherConfig("/nowhere/at/all"), "something that there is; got /nowhere/at/all. Ways to get one"),
        (TeacherConfig("random", depth=3), "at most the student's 2 blocks"),
        (TeacherConfig("random", blocks=3), "from 1 to the teacher's 2 blocks"),
        (TeacherConfig("random", output="projection"), "no projection"),
    ],
    ids=["none", "gone", "deep", "many", "projected"],
)
def test_teachers_that_cannot_be(config, message):
    with pytest.raises(ValueError, match=message):
        config.build(student())


def test_other_channels_are_refused(tmp_path):
    save_encoder(tmp_path, student(), scale={}, recipe="tiny")
    config = replace(tiny.ENCODER, in_chans=1, mean=(0.5,), std=(0.5,))
    with pytest.raises(ValueError, match="must be the student's 1; got 3 channels"):
        TeacherConfig(str(tmp_path)).build(config.build())
