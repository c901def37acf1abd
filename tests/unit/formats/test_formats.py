"""Which layout is whose: every layout is fed to every format."""

from dataclasses import replace

import pytest
import torch
from foreign_files import cae_weights, mmpretrain_weights, official_weights

from pantomim.formats import FORMATS, format_of, import_checkpoint, load_encoder, read_checkpoint
from pantomim.methods.cae import CAEConfig, cae_encoder
from pantomim.nn.decoder import DecoderConfig, LatentDecoderConfig
from pantomim.nn.dvae import DVAEEncoder, DVAESizes
from pantomim.nn.heads import Classifier
from pantomim.nn.regressor import RegressorConfig
from pantomim.nn.vit import EncoderConfig
from pantomim.targets.pixels import PixelTargetConfig

PLAIN = EncoderConfig(image_size=(12, 12), patch_size=4, width=16, depth=2, heads=2)
BEIT = replace(PLAIN, position="none", relative_position="shared", attention_bias="qv", layer_scale=0.1)
DECODER = DecoderConfig(width=8, depth=1, heads=2).build(16, 1, (3, 3), 48)
HEAD = {"mask_token": torch.zeros(1, 1, 16), "lm_head.weight": torch.zeros(7, 16), "lm_head.bias": torch.zeros(7)}


def converted_for_segmentation(encoder):
    weights = {name.removeprefix("backbone."): tensor for name, tensor in mmpretrain_weights(encoder).items()}
    return {name.replace("ln1.", "norm.") if name.startswith("ln1.") else name: t for name, t in weights.items()}


def cae():
    return CAEConfig(
        encoder=replace(cae_encoder("base"), image_size=(12, 12), patch_size=4, width=16, depth=2, heads=2),
        regressor=RegressorConfig(depth=1, heads=4),
        decoder=LatentDecoderConfig(depth=1),
        target=PixelTargetConfig(),
    ).build()


OWN_TABLES = replace(BEIT, relative_position="blocks")
FIXED = replace(OWN_TABLES, position="sincos_rows_first")
LAYOUTS = {
    "mae encoder": official_weights(PLAIN.build()),
    "mae decoder": official_weights(PLAIN.build(), DECODER),
    "mae classifier": official_weights(Classifier(PLAIN.build(), 3)),
    "mae class token": official_weights(Classifier(PLAIN.build(), 3, "class")),
    "mmpretrain encoder": mmpretrain_weights(PLAIN.build()),
    "mmpretrain decoder": mmpretrain_weights(PLAIN.build(), DECODER),
    "mmpretrain classifier": mmpretrain_weights(Classifier(PLAIN.build(), 3)),
    "mmpretrain converted": converted_for_segmentation(PLAIN.build()),
    "beit shared": official_weights(BEIT.build()) | HEAD,
    "beit encoder": official_weights(BEIT.build()),
    "beit absolute": official_weights(replace(BEIT, position="learned", relative_position="none").build()) | HEAD,
    "beit classifier": official_weights(Classifier(OWN_TABLES.build(), 3)),
    "cae lxtGH": cae_weights(cae()),
    "cae Atten4Vis": cae_weights(cae(), "Atten4Vis/CAE"),
    "cae classifier": official_weights(Classifier(FIXED.build(), 3)),
    "nobody's names": {"conv1.weight": torch.zeros(4, 3, 7, 7), "fc.bias": torch.zeros(2)},
    "nobody's dalle": DVAEEncoder(DVAESizes(width=8, vocabulary=16, blocks=1)).state_dict(),
    "nobody's port": {name.replace("blocks.", "backbone.layers."): t for name, t in BEIT.build().state_dict().items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exactly_one_format_recognises_a_layout(layout):
    shapes = {name: tuple(tensor.shape) for name, tensor in LAYOUTS[layout].items()}
    found = [one.name for one in FORMATS if one.recognises(shapes.keys(), shapes)]
    assert found == [name for name in [layout.split()[0]] if name != "nobody's"]


def test_each_format_has_one_name_and_a_layout_here():
    names = [one.name for one in FORMATS]
    assert len(set(names)) == len(names)
    assert {layout.split()[0] for layout in LAYOUTS} == {*names, "nobody's"}


def test_what_nobody_recognises_is_refused_with_its_names(tmp_path):
    torch.save(LAYOUTS["nobody's names"], tmp_path / "w.pth")
    said = r"one of the layouts mae, .*; got none of them\. It holds 2 tensors: conv1\.weight, fc\.bias\. Use timm"
    for read in (load_encoder, read_checkpoint):
        with pytest.raises(ValueError, match=said):
            read(tmp_path / "w.pth")
    with pytest.raises(ValueError, match=said):
        import_checkpoint(tmp_path / "w.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_layout_by_its_name(tmp_path):
    torch.save(LAYOUTS["beit encoder"], tmp_path / "w.pth")
    with pytest.raises(ValueError, match="must have an official MAE layout"):
        read_checkpoint(tmp_path / "w.pth", "mae")
    with pytest.raises(ValueError, match=r"import\.format must be one of mae, mmpretrain, beit, cae; got other"):
        read_checkpoint(tmp_path / "w.pth", "other")


def test_an_ambiguous_file_asks_for_a_name(monkeypatch):
    monkeypatch.setattr(type(FORMATS[1]), "recognises", lambda *given: True)
    with pytest.raises(ValueError, match=r"got mae, mmpretrain\. It holds"):
        format_of(LAYOUTS["mae encoder"], "a file")
