"""BEiT's files, and CAE's classifiers under the same names: made with timm's Beit, which computes independently."""

import argparse
from functools import partial

import pytest
import torch
from timm.models.beit import Beit
from torch import nn

from pantomim.formats import Given, import_checkpoint, load_encoder, read_checkpoint
from pantomim.formats.beit import BEiTFormat
from pantomim.formats.native import load_classifier, load_encoder_folder, load_predictor
from pantomim.masking.random import RandomMasker
from pantomim.methods.beit import BEiTConfig
from pantomim.nn.position import sincos_2d_rows_first
from pantomim.nn.relative import relative_index
from pantomim.targets.tokens import TokenTargetConfig

HALF = (0.5, 0.5, 0.5)
GIVEN = Given(heads=2, mean=HALF, std=(0.25, 0.5, 1.0))
VARIANTS = {
    "shared": {"use_shared_rel_pos_bias": True, "use_abs_pos_emb": False, "init_values": 0.1},
    "absolute": {"use_abs_pos_emb": True, "init_values": None},
    "both": {"use_abs_pos_emb": True, "use_shared_rel_pos_bias": True, "init_values": 0.1},
}
ROW = "relative_position_index"


def recognise(weights, source, given):
    return BEiTFormat().read(weights, source, given)


def timm_beit(**options):
    """A small network with every parameter drawn, so that none has its initial value."""
    torch.manual_seed(0)
    common = {"img_size": 12, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    norm = partial(nn.LayerNorm, eps=1e-6)
    model = Beit(**common, norm_layer=norm, **{"num_classes": 0, "global_pool": "token"} | options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def weights_of(model):
    """Names of the authors' code, with the matrices of rows that it stores."""
    found = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(ROW)}
    rows = relative_index((3, 3), class_token=True)
    tables = [name for name in found if name.endswith("relative_position_bias_table")]
    return found | {name.replace("bias_table", "index"): rows for name in tables}


def pretraining(name="shared", vocabulary=7):
    model = timm_beit(**VARIANTS[name])
    head = {"mask_token": torch.rand(1, 1, 16), "lm_head.weight": torch.rand(vocabulary, 16)}
    return model, weights_of(model) | head | {"lm_head.bias": torch.rand(vocabulary)}


def prepared(images):
    return (images - torch.tensor(GIVEN.mean).view(-1, 1, 1)) / torch.tensor(GIVEN.std).view(-1, 1, 1)


@pytest.mark.parametrize("wrapper", ["model", "module"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_pretraining_file_computes_what_timm_does(tmp_path, name, wrapper):
    model, weights = pretraining(name)
    torch.save({wrapper: weights, "epoch": 3, "args": argparse.Namespace(lr=1.0)}, tmp_path / "beit.pth")
    given = Given(GIVEN.heads, image_size=(12, 12), mean=GIVEN.mean, std=GIVEN.std)
    report = import_checkpoint(tmp_path / "beit.pth", tmp_path / "out", "beit", given)
    encoder = load_encoder_folder(tmp_path / "out")
    images = torch.rand(2, 3, 12, 12)
    with torch.no_grad():
        latent, expected = encoder(images), model.forward_features(prepared(images))
    torch.testing.assert_close(torch.cat([latent.prefix, latent.patches], dim=1), expected)
    text = str(report)
    assert "an official BEiT encoder" in text
    assert "mask token and a head for 7 tokens" in text
    assert ("relative, one table shared by the blocks" in text) == (name != "absolute")
    assert (f"left out, no part of the network: rel_pos_bias.{ROW}" in text) == (name != "absolute")
    assert [file for file in report.files if file.endswith(".json")] == ["encoder.json", "predictor.json"]
    predictor = load_predictor(tmp_path / "out")
    tokens = TokenTargetConfig(tokenizer="random-projection", vocabulary=7)
    method = BEiTConfig(encoder=encoder.config, masker=RandomMasker(), target=tokens).build()
    assert {key: tensor.shape for key, tensor in method.exports()["predictor"].items()} == {
        key: tensor.shape for key, tensor in predictor.items()
    }
    assert torch.equal(predictor["head.weight"], weights["lm_head.weight"])


@pytest.mark.parametrize("layout", ["beit", "cae"])
def test_a_classifier_computes_what_timm_does(tmp_path, layout):
    options = {"use_abs_pos_emb": layout == "cae", "use_rel_pos_bias": True, "init_values": 0.1}
    model = timm_beit(num_classes=5, global_pool="avg", **options)
    weights = weights_of(model)
    if layout == "cae":
        weights["pos_embed"] = sincos_2d_rows_first(16, (3, 3), 1).unsqueeze(0).float()
        model.pos_embed.data.copy_(weights["pos_embed"])
    torch.save({"model": weights}, tmp_path / "tuned.pth")
    report = import_checkpoint(tmp_path / "tuned.pth", tmp_path / "out", None, GIVEN)
    images = torch.rand(2, 3, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(load_classifier(tmp_path / "out")(images), model(prepared(images)))
    assert "head: 5 classes, pool mean" in str(report)
    assert "relative, a table in each of the blocks" in str(report)
    assert f"blocks.0.attn.{ROW}" in str(report)
    assert report.files == ("classifier.safetensors", "classifier.json")


def test_the_grid_is_told_by_the_tables_alone():
    _, weights = pretraining()
    assert recognise(weights, "a file", GIVEN).encoder.grid == (3, 3)


@pytest.mark.parametrize(("flag", "mean"), [(True, 0.485), (False, 0.5)])
def test_the_files_own_arguments_tell_mean_and_std(tmp_path, flag, mean):
    arguments = argparse.Namespace(imagenet_default_mean_and_std=flag)
    torch.save({"model": pretraining()[1], "args": arguments}, tmp_path / "beit.pth")
    found = read_checkpoint(tmp_path / "beit.pth", given=Given(heads=2))
    assert found.encoder.config.mean[0] == mean


def test_mean_and_std_are_not_guessed(tmp_path):
    with pytest.raises(ValueError, match=r"mean and std must both be given; got None and None"):
        recognise(pretraining()[1], "a file", Given(heads=2))


def test_every_difference_is_told():
    _, weights = pretraining()
    name = "blocks.1.mlp.fc2.weight"
    for changed, message in [
        ({key: tensor for key, tensor in weights.items() if key != name}, rf"missing: {name}"),
        (weights | {"cls_pt_layers.0.norm1.weight": torch.zeros(1)}, r"unexpected: cls_pt_layers\.0\.norm1\.weight"),
        (weights | {name: torch.zeros(16, 60)}, rf"mis-shaped: {name}"),
        (weights | {"mask_token": torch.zeros(1, 1, 8)}, "mask token and head of shapes"),
        (weights | {f"rel_pos_bias.{ROW}": torch.zeros(10, 10)}, "other rows of relative positions"),
        (weights | {"fc_norm.weight": torch.zeros(16)}, "parts of pre-training and of a classifier"),
        (weights | {"blocks.0.attn.relative_position_bias_table": torch.zeros(28, 2)}, "both shared and of each block"),
        (weights | {"rel_pos_bias.relative_position_bias_table": torch.zeros(27, 2)}, "a grid that is not square"),
    ]:
        with pytest.raises(ValueError, match=message):
            recognise(changed, "a file", GIVEN)


def test_another_number_of_heads_is_refused():
    with pytest.raises(ValueError, match=r"must have 28 rows and 4 heads .* got \(28, 2\)"):
        recognise(pretraining()[1], "a file", Given(heads=4, mean=HALF, std=HALF))


def test_no_positions_need_an_image_size():
    weights = {name: tensor for name, tensor in pretraining()[1].items() if "rel_pos" not in name}
    with pytest.raises(ValueError, match="image_size must be given where there are no positions"):
        recognise(weights, "a file", GIVEN)


def test_an_encoder_by_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr("pantomim.formats.beit.HEADS", {16: 2})
    arguments = argparse.Namespace(imagenet_default_mean_and_std=False)
    torch.save({"model": pretraining()[1], "args": arguments}, tmp_path / "beit.pth")
    assert load_encoder(tmp_path / "beit.pth").config.relative_position == "shared"
