"""Run folders that earlier versions wrote stay usable; what they were is never changed in silence."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pantomim.config import REMOVED, Pretrain, from_yaml, is_of_earlier_version, of_today, to_yaml
from pantomim.methods.cmt_mae import CMTMAEConfig
from pantomim.targets.distance import Distance
from pantomim.targets.pair import Blend, Concat, Weighted
from pantomim.teachers.mixing import Mixing

RUNS = Path(__file__).parents[1] / "fixtures" / "runs_before_house"
CMT = yaml.safe_load((RUNS / "cmt_mae" / "config.yaml").read_text())


def changed(tmp_path, values, **changes):
    """A config.yaml with other values at dotted paths."""
    values = yaml.safe_load(yaml.safe_dump(values))
    for dotted, value in changes.items():
        *path, name = dotted.split("/")
        part = values
        for key in path:
            part = part[key]
        part[name] = value
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("name", ["mae", "cmt_mae"])
def test_both_are_read_and_known_as_earlier_ones(name, tmp_path):
    path = RUNS / name / "config.yaml"
    config = from_yaml(Pretrain, path)
    assert config.method.kind == name
    assert is_of_earlier_version(path)
    rewritten = tmp_path / "config.yaml"
    rewritten.write_text(to_yaml(config))
    assert not is_of_earlier_version(rewritten)
    assert from_yaml(Pretrain, rewritten) == config


def test_defaults_are_today_s():
    config = from_yaml(Pretrain, RUNS / "cmt_mae" / "config.yaml").method
    plain = CMTMAEConfig(
        encoder=config.encoder,
        decoder=config.decoder,
        masker=config.masker,
        teacher=config.teacher,
        half_life=0.02,
        guide_precision="float32",  # as it then was on every device
    )
    assert config == plain


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method/target_mode": "blend"}, {"target": Blend()}),
        ({"method/target_mode": "concat", "method/normalise": "l2"}, {"target": Concat(normalise="l2")}),
        ({"method/distance": {"form": "cosine", "beta": None}}, {"target": Weighted(distance=Distance("cosine"))}),
        ({"method/mixing/stage_mode": "joint"}, {"mixing": Mixing(warmup_share=0.0)}),
        ({"method/mixing/mask_teacher_weight": 0.2}, {"mixing": Mixing(0.2), "target": Weighted(teacher_weight=0.5)}),
        ({"method/mixing/target_teacher_weight": 0.9}, {"target": Weighted(teacher_weight=0.9)}),
        ({"method/pixel_weight": 0.5}, {"pixel_weight": 0.5}),
    ],
    ids=str,
)
def test_moved_settings_are_followed(changes, expected, tmp_path):
    usual = from_yaml(Pretrain, RUNS / "cmt_mae" / "config.yaml").method
    assert from_yaml(Pretrain, changed(tmp_path, CMT, **changes)).method == replace(usual, **expected)


@pytest.mark.parametrize(
    ("dotted", "kept"),
    [item for settings in REMOVED.values() for item in settings.items()],
    ids=lambda value: str(value),
)
def test_removed_settings_are_refused_by_name_at_another_value(dotted, kept, tmp_path):
    path = changed(tmp_path, CMT, **{dotted.replace(".", "/"): "another"})
    with pytest.raises(ValueError, match=f"{dotted} must be {kept}, as this version has no such setting; got another"):
        from_yaml(Pretrain, path)


def test_a_removed_kind_of_masker_is_refused_by_name(tmp_path):
    path = changed(tmp_path, CMT, **{"method/masker": {"kind": "schedule", "stages": []}})
    with pytest.raises(ValueError, match=r"method\.masker: Input tag 'schedule'"):
        from_yaml(Pretrain, path)


def test_settings_of_today_and_what_is_none_are_left_alone():
    today = yaml.safe_load(to_yaml(from_yaml(Pretrain, RUNS / "cmt_mae" / "config.yaml")))
    assert of_today(today, "here") == today
    assert of_today({"run": CMT, "stages": 2}, "here") == {"run": of_today(CMT, "here"), "stages": 2}
    for nothing in (None, [], {"method": None}, {"run": None}):
        assert of_today(nothing, "here") == nothing
