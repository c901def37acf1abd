"""Answers of frozen parts on disk: the same losses, another key for another part or data, damage that is noticed."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from tiny import ENCODER, tiny_images, tiny_run

from pantomim.config import RuntimeConfig
from pantomim.data.transforms import Crop
from pantomim.engine.cache import Layout, remember
from pantomim.engine.pretrain import pretrain
from pantomim.engine.record import read_metrics
from pantomim.masking.attention import AttentionMasker
from pantomim.masking.random import RandomMasker
from pantomim.methods.beit import BEiTConfig
from pantomim.methods.guides import GuideConfig
from pantomim.targets.features import FeatureTargetConfig
from pantomim.targets.tokens import TokenTargetConfig
from pantomim.teachers.base import Guidance
from pantomim.teachers.choice import TeacherConfig

TOKENS = TokenTargetConfig(tokenizer="random-projection", vocabulary=32)
FEATURES = FeatureTargetConfig(teacher=TeacherConfig(source="random"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PANTOMIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def source(tmp_path):
    return tiny_images(tmp_path / "tiny.npz", num_images=50)


def run_of(source, target, *, cache=True, crop=None, seed=0, guide=None, **changes):
    masker = RandomMasker(ratio=0.5) if guide is None else AttentionMasker()
    method = BEiTConfig(encoder=ENCODER, masker=masker, target=target, guide=guide or GuideConfig())
    crop = crop or Crop(kind="none")
    config = tiny_run(source, steps=6, batch_size=16, method=method, **changes)
    return replace(
        config,
        data=replace(config.data, crop=crop),
        runtime=replace(config.runtime, cache=cache, seed=seed),
    )


def losses(out):
    return [row["loss"] for row in read_metrics(out / "metrics.jsonl")]


def folders(cache):
    return sorted(path for path in cache.iterdir() if path.is_dir())


@pytest.mark.parametrize("target", [TOKENS, FEATURES], ids=["tokens", "features"])
@pytest.mark.parametrize("flip", [True, False])
def test_the_same_losses_bit_for_bit(tmp_path, source, target, flip, cache):
    crop = Crop(kind="none", flip=flip)
    for name, cached in [("plain", False), ("first", True), ("second", True)]:
        pretrain(run_of(source, target, cache=cached, crop=crop), tmp_path / name)
    assert losses(tmp_path / "plain") == losses(tmp_path / "first") == losses(tmp_path / "second")
    assert not (tmp_path / "plain" / "cache.json").exists()
    (first,) = json.loads((tmp_path / "first" / "cache.json").read_text())["parts"].values()
    (second,) = json.loads((tmp_path / "second" / "cache.json").read_text())["parts"].values()
    assert first["images_computed"] == 40 * (1 + flip)
    assert second["images_computed"] == 0
    assert first["images_served"] == second["images_served"] == second["passes_saved"] == 6 * 16
    assert len(folders(cache)) == 1
    assert second["bytes"] == (folders(cache)[0] / "values.bin").stat().st_size


def test_the_part_is_not_asked_again(tmp_path, source, monkeypatch):
    asked = []
    honest = FeatureTargetConfig.build

    def build(self, encoder):
        target = honest(self, encoder)
        target.teacher.encoder.register_forward_pre_hook(lambda *_: asked.append(1))
        target.teacher.encoder.patch_embed.register_forward_pre_hook(lambda *_: asked.append(1))
        return target

    monkeypatch.setattr(FeatureTargetConfig, "build", build)
    pretrain(run_of(source, FEATURES, crop=Crop(kind="none", flip=False)), tmp_path / "run")
    assert len(asked) == 1 + 3  # how an answer looks, then 40 images in batches of 16; none in the six steps


def test_a_run_that_goes_on_with_a_cache_that_it_was_not_begun_with(tmp_path, source):
    config = run_of(source, FEATURES, cache=False)
    config = replace(config, runtime=replace(config.runtime, save_every=2))
    pretrain(config, tmp_path / "run")
    expected = losses(tmp_path / "run")
    (tmp_path / "run" / "finished.json").unlink()
    last = max((tmp_path / "run" / "checkpoints").iterdir())
    assert len(list(last.parent.iterdir())) == 2
    shutil.rmtree(last)
    pretrain(replace(config, runtime=replace(config.runtime, cache=True)), tmp_path / "run")
    assert losses(tmp_path / "run") == expected
    assert json.loads((tmp_path / "run" / "cache.json").read_text())["steps_served"] == 2


def test_another_part_or_other_images_make_another_key(tmp_path, source, cache):
    plain = Crop(kind="none", flip=False)
    pretrain(run_of(source, FEATURES, crop=plain), tmp_path / "a")
    assert len(folders(cache)) == 1
    pretrain(run_of(source, FEATURES, crop=plain, seed=1), tmp_path / "b")  # another random teacher
    assert len(folders(cache)) == 2
    taken = replace(FEATURES, teacher=TeacherConfig(source="random", output="norm"))
    pretrain(run_of(source, taken, crop=plain), tmp_path / "c")  # the same weights, something else taken of them
    assert len(folders(cache)) == 3
    other = tiny_images(tmp_path / "other.npz", num_images=60)
    pretrain(run_of(other, FEATURES, crop=plain), tmp_path / "d")
    assert len(folders(cache)) == 4
    loss = replace(FEATURES, normalise="l2")
    pretrain(run_of(source, loss, crop=plain), tmp_path / "e")  # the same answers, used in another way
    assert len(folders(cache)) == 4


def test_damage_is_noticed(tmp_path, source, cache):
    pretrain(run_of(source, FEATURES), tmp_path / "a")
    file = folders(cache)[0] / "values.bin"
    values = bytearray(file.read_bytes())
    values[len(values) // 2] ^= 1
    file.write_bytes(values)
    with pytest.raises(ValueError, match=r"values\.bin must be as it was written; got another checksum in row"):
        pretrain(run_of(source, FEATURES, duration=tiny_run(source, steps=30).duration), tmp_path / "b")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"crop": Crop()}, r"crops are drawn anew every time \(data\.crop\.kind random_resized\)"),
        ({"target": replace(FEATURES, teacher=TeacherConfig(source="ema"))}, "beit has no teacher or tokenizer"),
        ({"guide": GuideConfig(source="random")}, "attention, which guides the masks"),
    ],
    ids=["crop", "ema", "guided"],
)
def test_a_cache_that_cannot_serve_is_refused(tmp_path, source, changes, reason):
    with pytest.raises(ValueError, match=reason):
        pretrain(run_of(source, **{"target": FEATURES} | changes), tmp_path / "run")


def test_augmentation_is_refused(tmp_path, source):
    config = run_of(source, FEATURES)
    augment = replace(config.data.augment, grayscale=0.2)
    with pytest.raises(ValueError, match="augmented anew every time"):
        pretrain(replace(config, data=replace(config.data, augment=augment)), tmp_path / "run")


def test_no_room_on_the_disk_is_said_before_training(tmp_path, source, monkeypatch, cache):
    from pantomim.engine import cache as module

    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(ValueError, match=r"must have room on the disk; got 0\.0 GiB"):
        pretrain(run_of(source, FEATURES), tmp_path / "run")
    assert not folders(cache)


@pytest.mark.parametrize(
    "answer",
    [
        torch.arange(12).view(3, 4),
        Guidance(torch.randn(3, 1, 4), torch.randn(3, 5, 4)),
        Guidance(torch.randn(3, 0, 4), torch.randn(3, 5, 4).bfloat16()),
    ],
    ids=["ids", "features", "no prefix, half precision"],
)
def test_rows_are_what_was_said(answer):
    layout = Layout.of(answer)
    rows = layout.to_rows(answer)
    assert rows.shape == (3, sum(layout.sizes))
    found = layout.from_rows(rows[[2, 0]], torch.device("cpu"))
    assert type(found) is type(answer)
    pairs = [(found, answer)] if isinstance(answer, torch.Tensor) else zip(found, answer, strict=True)
    for own, whole in pairs:
        assert (own is None and whole is None) or (own.dtype == whole.dtype and torch.equal(own, whole[[2, 0]]))


def test_without_the_setting_nothing_is_touched(source):
    config = run_of(source, TOKENS, cache=False)
    method = config.method.build()
    assert not remember(config, method, None, None, rows=4, dtype=torch.float32).parts  # type: ignore[arg-type]
    assert "forward" not in vars(method.target.tokenizer)
    assert not RuntimeConfig().cache
