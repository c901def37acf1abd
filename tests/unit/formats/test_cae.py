"""CAE's names in both releases, and pre-training files read exactly."""

from dataclasses import replace

import pytest
import torch
from foreign_files import cae_weights

from pantomim.formats import AS_PUBLISHED, Given, import_checkpoint, load_encoder, read_checkpoint
from pantomim.formats.cae import CAEFormat, official_name
from pantomim.formats.native import load_encoder_folder, load_predictor
from pantomim.methods.cae import CAEConfig, cae_encoder
from pantomim.nn.decoder import LatentDecoderConfig
from pantomim.nn.position import sincos_2d
from pantomim.nn.regressor import RegressorConfig
from pantomim.targets.pixels import PixelTargetConfig

RELEASES = ["lxtGH/CAE", "Atten4Vis/CAE"]
GIVEN = Given(heads=2, decoder_heads=4)


def build(width=None):
    torch.manual_seed(0)
    return CAEConfig(
        encoder=replace(cae_encoder("base"), image_size=(12, 12), patch_size=4, width=16, depth=2, heads=2),
        regressor=RegressorConfig(depth=2, width=width, heads=4),
        decoder=LatentDecoderConfig(depth=1),
        target=PixelTargetConfig(),
        align_momentum=0.0,
    ).build()


def recognise(weights, source, given=GIVEN):
    return CAEFormat().read(weights, source, given)


@pytest.mark.parametrize("release", RELEASES)
def test_each_name_has_its_own(release):
    names = list(build(width=8).state_dict())
    assert len({official_name(name, release) for name in names}) == len(names)


def test_published_names():
    """Section 9 of the specification."""
    ours = "regressor.blocks.3.attn.q.weight"
    assert official_name(ours) == "pretext_neck.regressor_blocks.3.cross_attn.q.weight"
    assert official_name(ours, "Atten4Vis/CAE") == "regresser.regressor_blocks.3.cross_attn.q.weight"
    assert official_name("decoder.norm.weight") == "pretext_neck.norm2.weight"
    assert official_name("decoder.norm.weight", "Atten4Vis/CAE") == "decoder.norm.weight"
    assert official_name("aligner.copy.norm.weight", "Atten4Vis/CAE") == "alignment_encoder.norm.weight"
    assert official_name("encoder.blocks.0.gamma_1") == "encoder.blocks.0.gamma_1"
    assert official_name("regressor.mask_token") == "mask_token"


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"backbone\.x must be a parameter of CAE"):
        official_name("backbone.x")


@pytest.mark.parametrize("width", [None, 8])
@pytest.mark.parametrize("release", RELEASES)
def test_a_file_holds_what_the_method_learned(tmp_path, release, width):
    method = build(width).eval()
    torch.save({"model": cae_weights(method, release), "epoch": 3}, tmp_path / "file.pth")
    found = read_checkpoint(tmp_path / "file.pth", given=GIVEN)
    learned = {f"encoder.{name}": tensor for name, tensor in found.encoder.state_dict().items()} | found.predictor
    own = {name: tensor for name, tensor in method.state_dict().items() if not name.startswith("aligner.")}
    assert learned.keys() == own.keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in learned.items())
    assert f"names of {release}" in found.notes
    copies = {name.partition(".")[0] for name in found.left_out}
    assert copies == ({"teacher"} if release == "lxtGH/CAE" else {"alignment_encoder", "rd_pos_embed"})


@pytest.mark.parametrize("release", RELEASES)
def test_every_difference_is_told(release):
    weights = cae_weights(build(), release)
    name = official_name("regressor.blocks.1.mlp.fc2.weight", release)
    with pytest.raises(ValueError, match=rf"missing: {name}"):
        recognise({key: tensor for key, tensor in weights.items() if key != name}, "a file", GIVEN)
    with pytest.raises(ValueError, match=r"unexpected: encoder\.extra"):
        recognise(weights | {"encoder.extra": torch.zeros(1)}, "a file", GIVEN)
    with pytest.raises(ValueError, match=r"mis-shaped: mask_token"):
        recognise(weights | {"mask_token": torch.zeros(2, 1, 16)}, "a file", GIVEN)


def test_another_table_is_refused():
    weights = cae_weights(build(), "Atten4Vis/CAE")
    weights["rd_pos_embed"] = sincos_2d(16, (3, 3), 1)[None].float()
    with pytest.raises(ValueError, match="rd_pos_embed must be the sine-cosine table of a 3 x 3 grid, rows first"):
        recognise(weights, "a file", GIVEN)


def test_what_is_no_cae_is_refused():
    with pytest.raises(ValueError, match=r"must have an official CAE layout .* It holds 1 tensors: backbone\.x"):
        recognise({"backbone.x": torch.zeros(1)}, "a file")


def test_heads_must_be_given_where_they_are_not_published():
    with pytest.raises(ValueError, match=r"heads must be given for width 16; known are 192, 384, 768, 1024"):
        recognise(cae_weights(build(), "lxtGH/CAE"), "a file", AS_PUBLISHED)


@pytest.mark.parametrize("width", [None, 8])
@pytest.mark.parametrize("release", RELEASES)
def test_an_import_keeps_all_that_is_learned(tmp_path, release, width):
    method = build(width).eval()
    torch.save({"model": cae_weights(method, release)}, tmp_path / "cae.pth")
    report = import_checkpoint(tmp_path / "cae.pth", tmp_path / "out", "cae", GIVEN)
    images = torch.rand(2, 3, 12, 12)
    assert torch.equal(load_encoder_folder(tmp_path / "out")(images).patches, method.encoder(images).patches)
    text = str(report)
    assert f"names of {release}" in text
    assert "positions: sincos, rows first, as stored" in text
    assert f"regressor: {width or 16} wide, 2 deep" in text
    assert "decoder: 1 deep, head of 48" in text
    copy = "teacher" if release == "lxtGH/CAE" else "alignment_encoder"
    assert f"{copy}.norm.weight" in text
    assert [file for file in report.files if file.endswith(".json")] == ["encoder.json", "predictor.json"]
    predictor, ours = load_predictor(tmp_path / "out"), method.exports()["predictor"]
    assert predictor.keys() == ours.keys()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in predictor.items())


def test_an_encoder_by_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr("pantomim.formats.cae.HEADS", {16: 2})
    method = build().eval()
    torch.save({"model": cae_weights(method, "lxtGH/CAE")}, tmp_path / "cae.pth")
    assert torch.equal(load_encoder(tmp_path / "cae.pth").norm.weight, method.encoder.norm.weight)


def test_a_damaged_regressor_is_no_import(tmp_path):
    weights = cae_weights(build(), "lxtGH/CAE")
    del weights["pretext_neck.norm.weight"]
    torch.save({"model": weights}, tmp_path / "cae.pth")
    with pytest.raises(ValueError, match=r"missing: pretext_neck\.norm\.weight"):
        import_checkpoint(tmp_path / "cae.pth", tmp_path / "out", "cae", GIVEN)
    assert not (tmp_path / "out").exists()
