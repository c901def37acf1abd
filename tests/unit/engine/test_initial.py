"""A student that keeps its weights from stage to stage keeps what it predicts with, too."""

from dataclasses import replace

import pytest
import torch
from tiny import DECODER, ENCODER, tiny_run

from pantomim.config import to_yaml
from pantomim.engine.initial import start_from
from pantomim.formats.files import frozen_hashes
from pantomim.formats.native import save_decoder, save_encoder, save_predictor
from pantomim.methods.beit import BEiTConfig
from pantomim.methods.dbot import DBOTConfig
from pantomim.methods.mae import MAEConfig
from pantomim.optim import limit_training
from pantomim.targets.features import FeatureTargetConfig
from pantomim.teachers.choice import TeacherConfig


def saved(method, folder):
    save_encoder(folder, method.encoder, scale={"rule": "", "divisor": 1.0}, recipe="first")
    if hasattr(method, "decoder"):
        save_decoder(folder, method.decoder)
    else:
        save_predictor(folder, method.exports()["predictor"], method="beit", frozen=frozen_hashes(method))
    return str(folder)


def dbot(source):
    return DBOTConfig(encoder=ENCODER, decoder=DECODER, teacher=TeacherConfig(source)).build()


def beit(source):
    return BEiTConfig(encoder=ENCODER, target=FeatureTargetConfig(teacher=TeacherConfig(source))).build()


def perturbed(method):
    with torch.no_grad():
        for weight in method.parameters():
            weight.add_(torch.randn_like(weight))
    return method


@pytest.mark.parametrize("channels", [1, 7])
def test_what_is_not_trained_takes_no_other_bands(tmp_path, channels):
    spec = saved(MAEConfig(encoder=ENCODER, decoder=DECODER).build(), tmp_path)
    bands = replace(ENCODER, in_chans=channels, mean=(0.5,) * channels, std=(0.3,) * channels)
    method = MAEConfig(encoder=bands, decoder=DECODER).build()
    limit_training(method.encoder, 0, rank=2)
    if channels == 1:
        assert "is summed: 1 channel(s) of 3" in start_from(spec, method)
    else:
        with pytest.raises(ValueError, match=r"must have the 7 channels of the images .*; got 3 in"):
            start_from(spec, method)


@pytest.mark.parametrize("build", [dbot, beit])
def test_in_a_chain_all_is_kept_whatever_taught_before(tmp_path, build):
    first = perturbed(build("random"))
    spec = saved(first, tmp_path / "stage-0")
    second = build(spec)
    assert "taken too" in start_from(spec, second)
    kept = second.state_dict()
    for name, weight in first.state_dict().items():
        if "teacher" not in name:
            assert torch.equal(kept[name], weight), name


@pytest.mark.parametrize(("build", "layer"), [(dbot, "decoder_pred"), (beit, "head")])
def test_of_another_width_only_the_last_layer_is_new(tmp_path, build, layer):
    wide = replace(ENCODER, width=32).build()
    save_encoder(tmp_path / "wide", wide, scale={"rule": "", "divisor": 1.0}, recipe="wide")
    first = perturbed(build(str(tmp_path / "wide")))
    spec = saved(first, tmp_path / "stage-0")
    second = build(spec)
    assert f"but for {layer}.bias, {layer}.weight, of other sizes" in start_from(spec, second)
    before, after = (
        {name: weight for name, weight in method.named_parameters() if not name.startswith(("encoder.", "t"))}
        for method in (first, second)
    )
    kept = {name for name in after if after[name].shape == before[name].shape}
    assert {name for name in after if layer in name} == after.keys() - kept
    assert kept
    assert all(torch.equal(after[name], before[name]) for name in kept)


@pytest.mark.parametrize(
    ("first", "taken"),
    [
        (DBOTConfig(encoder=ENCODER, decoder=DECODER, teacher=TeacherConfig("random")), True),
        (MAEConfig(encoder=ENCODER, decoder=DECODER), False),
        (None, False),  # of others, whose decoders predict pixels
    ],
    ids=["dbot", "mae", "imported"],
)
def test_a_decoder_of_another_method_is_not_taken(tmp_path, first, taken):
    spec = saved(dbot("random") if first is None else first.build(), tmp_path)
    if first is not None:
        (tmp_path / "config.yaml").write_text(to_yaml(tiny_run(tmp_path, method=first)))
    config = DBOTConfig(encoder=ENCODER, decoder=DECODER, teacher=TeacherConfig(spec))
    told = start_from(spec, config.build(), config=config)
    assert ("its decoder is taken too" in told) == taken
    assert ("predicts something else, and is not taken" in told) != taken


def test_beside_another_teacher_a_head_is_not_taken(tmp_path):
    spec = saved(beit("random"), tmp_path / "stage-0")
    assert "was learned beside another" in start_from(spec, beit("random"))
