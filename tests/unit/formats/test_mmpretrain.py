"""mmpretrain's layout, against a forward pass written from its source's formulas, on the names of the file itself."""

import json
import math
import sys
import types

import numpy as np
import pytest
import torch
from foreign_files import mmpretrain_weights, official_weights
from safetensors.torch import save_file
from torch.nn import functional as F

from pantomim.core.mask import Mask
from pantomim.formats import AS_PUBLISHED, Given, import_checkpoint, load_encoder, read_checkpoint
from pantomim.formats.mmpretrain import MMPretrainFormat, mmpretrain_name
from pantomim.formats.native import load_classifier, load_decoder, load_encoder_folder
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.heads import Classifier
from pantomim.nn.position import sincos_2d
from pantomim.nn.vit import EncoderConfig

WIDTH, HEADS, DEPTH = 96, 3, 2
INNER, INNER_HEADS = 64, 4
PATCH, GRID = 4, 3
SIDE = PATCH * GRID
GIVEN = Given(decoder_heads=INNER_HEADS)
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of pixels from 0 to 255


def recognise(weights, source, given=AS_PUBLISHED):
    return MMPretrainFormat().read(weights, source, given)


def table(width):
    """mmpretrain's sine-cosine table, patch by patch: the row first; the class token has zeros."""
    rows = [[0.0] * width]
    for row in range(GRID):
        for col in range(GRID):
            vector = []
            for position in (row, col):
                angles = [position / 10000 ** (i / (width // 4)) for i in range(width // 4)]
                vector += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            rows.append(vector)
    return torch.tensor([rows], dtype=torch.float64)


def layer(prefix, width):
    shapes = {
        "ln1.weight": (width,),
        "ln1.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "ln2.weight": (width,),
        "ln2.bias": (width,),
        "ffn.layers.0.0.weight": (4 * width, width),
        "ffn.layers.0.0.bias": (4 * width,),
        "ffn.layers.1.weight": (width, 4 * width),
        "ffn.layers.1.bias": (width,),
    }
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def released(kind="pre-training"):
    """Random weights in float64 under the names of a released file, with mmpretrain's position tables."""
    shapes = {
        "backbone.cls_token": (1, 1, WIDTH),
        "backbone.patch_embed.projection.weight": (WIDTH, 3, PATCH, PATCH),
        "backbone.patch_embed.projection.bias": (WIDTH,),
    }
    for index in range(DEPTH):
        shapes |= layer(f"backbone.layers.{index}", WIDTH)
    norm = "backbone.ln2" if kind == "classifier" else "backbone.ln1"
    shapes |= {f"{norm}.weight": (WIDTH,), f"{norm}.bias": (WIDTH,)}
    if kind.startswith("classifier"):
        shapes |= {"head.fc.weight": (7, WIDTH), "head.fc.bias": (7,)}
    if kind == "pre-training":
        shapes |= {
            "neck.mask_token": (1, 1, INNER),
            "neck.decoder_embed.weight": (INNER, WIDTH),
            "neck.decoder_embed.bias": (INNER,),
            **layer("neck.decoder_blocks.0", INNER),
            **layer("neck.decoder_blocks.1", INNER),
            "neck.ln1.weight": (INNER,),
            "neck.ln1.bias": (INNER,),
            "neck.decoder_pred.weight": (PATCH * PATCH * 3, INNER),
            "neck.decoder_pred.bias": (PATCH * PATCH * 3,),
        }
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator).double() / 4 for name, shape in shapes.items()}
    weights["backbone.pos_embed"] = table(WIDTH)
    if kind == "pre-training":
        weights["neck.decoder_pos_embed"] = table(INNER)
    return weights


def without(weights, *beginnings):
    return {name: tensor for name, tensor in weights.items() if not name.startswith(beginnings)}


def pixels_of_stored(weights):
    """As `data_preprocessor` would hold them."""
    stored = {"mean": MEAN, "std": STD}
    return weights | {f"data_preprocessor.{name}": torch.tensor(value).view(3, 1, 1) for name, value in stored.items()}


def checkpoint(path, weights, **others):
    meta = {"epoch": 300, "iter": 93900, "cfg": "model = dict()", "dataset_meta": {"classes": ("cat", "dog")}}
    torch.save({"meta": meta, "state_dict": weights, **others}, path)
    return path


def run_layer(weights, prefix, tokens, heads):
    """One `TransformerEncoderLayer`."""
    own = {name.removeprefix(f"{prefix}."): value for name, value in weights.items() if name.startswith(f"{prefix}.")}
    batch, count, width = tokens.shape
    normed = F.layer_norm(tokens, (width,), own["ln1.weight"], own["ln1.bias"], 1e-6)
    projected = normed @ own["attn.qkv.weight"].T + own["attn.qkv.bias"]
    query, key, value = projected.reshape(batch, count, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    attention = torch.softmax(query @ key.transpose(-2, -1) * (width // heads) ** -0.5, dim=-1)
    mixed = (attention @ value).transpose(1, 2).reshape(batch, count, width)
    tokens = tokens + mixed @ own["attn.proj.weight"].T + own["attn.proj.bias"]
    normed = F.layer_norm(tokens, (width,), own["ln2.weight"], own["ln2.bias"], 1e-6)
    hidden = normed @ own["ffn.layers.0.0.weight"].T + own["ffn.layers.0.0.bias"]
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    return tokens + hidden @ own["ffn.layers.1.weight"].T + own["ffn.layers.1.bias"]


def run_backbone(weights, images, ids_keep=None):
    """`ColorMAEViT` on images from 0 to 1, up to the last layer."""
    mean, std = (torch.tensor(value, dtype=torch.float64).view(1, 3, 1, 1) for value in (MEAN, STD))
    kernel, bias = (weights[f"backbone.patch_embed.projection.{name}"] for name in ("weight", "bias"))
    patches = F.conv2d((255 * images - mean) / std, kernel, bias, stride=PATCH).flatten(2).transpose(1, 2)
    patches = patches + weights["backbone.pos_embed"][:, 1:]
    if ids_keep is not None:
        patches = torch.stack([row[ids] for row, ids in zip(patches, ids_keep, strict=True)])
    first = (weights["backbone.cls_token"] + weights["backbone.pos_embed"][:, :1]).expand(len(images), -1, -1)
    tokens = torch.cat([first, patches], dim=1)
    for index in range(DEPTH):
        tokens = run_layer(weights, f"backbone.layers.{index}", tokens, HEADS)
    return tokens


def run_norm(weights, name, tokens):
    return F.layer_norm(tokens, tokens.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)


def run_neck(weights, latent, ids_keep):
    """`MAEPretrainDecoder`: what it predicts for every patch."""
    embedded = latent @ weights["neck.decoder_embed.weight"].T + weights["neck.decoder_embed.bias"]
    everywhere = weights["neck.mask_token"].expand(len(latent), GRID * GRID, -1).clone()
    for image, ids in enumerate(ids_keep):
        everywhere[image, ids] = embedded[image, 1:]
    tokens = torch.cat([embedded[:, :1], everywhere], dim=1) + weights["neck.decoder_pos_embed"]
    for index in range(2):
        tokens = run_layer(weights, f"neck.decoder_blocks.{index}", tokens, INNER_HEADS)
    tokens = run_norm(weights, "neck.ln1", tokens)
    return (tokens @ weights["neck.decoder_pred.weight"].T + weights["neck.decoder_pred.bias"])[:, 1:]


def images():
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).double()


def mask():
    return Mask.from_scores(torch.rand(2, GRID * GRID, generator=torch.Generator().manual_seed(2)), 5)


def assert_near(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert theirs.abs().mean() > 0.1


@pytest.mark.parametrize("preprocessor", [False, True])
def test_the_imported_networks_compute_what_mmpretrain_computes(tmp_path, preprocessor):
    weights, hidden = released(), mask()
    stored = pixels_of_stored(weights) if preprocessor else weights
    source = checkpoint(tmp_path / "epoch_300.pth", stored)
    report = import_checkpoint(source, tmp_path / "out", "mmpretrain", GIVEN)
    encoder, decoder = load_encoder_folder(tmp_path / "out"), load_decoder(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(report.files)

    whole = encoder(images())
    assert_near(torch.cat(whole[:2], dim=1), run_norm(weights, "backbone.ln1", run_backbone(weights, images())))
    theirs = run_norm(weights, "backbone.ln1", run_backbone(weights, images(), hidden.ids_keep))
    latent = encoder(images(), hidden.ids_keep)
    assert_near(torch.cat(latent[:2], dim=1), theirs)
    prediction = run_neck(weights, theirs, hidden.ids_keep)
    assert_near(decoder(latent, hidden, everywhere=True), prediction)
    assert_near(decoder(latent, hidden), prediction[hidden.masked].view(2, 5, -1))


def test_the_stored_table_is_kept_and_told(tmp_path):
    report = import_checkpoint(checkpoint(tmp_path / "c.pth", released()), tmp_path / "out", "mmpretrain", GIVEN)
    loaded, ours = load_encoder(tmp_path / "out").pos_embed, sincos_2d(WIDTH, (GRID, GRID), 1)[None]
    assert torch.equal(loaded, table(WIDTH))
    assert not torch.allclose(loaded, ours, atol=0.1)
    cells = loaded[:, 1:].view(GRID, GRID, WIDTH)
    torch.testing.assert_close(cells.transpose(0, 1).flatten(0, 1), ours[0, 1:])  # the transpose of MAE's
    assert torch.equal(load_decoder(tmp_path / "out").decoder_pos_embed, table(INNER))
    for name in ("encoder", "decoder"):
        about = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert about["position_table"] == "sincos, rows first"
    assert str(report).count("positions: sincos, rows first, as stored") == 2
    assert about["decoder"]["heads"] == INNER_HEADS


def test_a_table_of_no_formula_is_kept_as_well(tmp_path):
    weights = released() | {"backbone.pos_embed": torch.randn(1, GRID**2 + 1, WIDTH).double()}
    import_checkpoint(checkpoint(tmp_path / "c.pth", weights), tmp_path / "out", "mmpretrain", GIVEN)
    assert torch.equal(load_encoder(tmp_path / "out").pos_embed, weights["backbone.pos_embed"])
    assert json.loads((tmp_path / "out" / "encoder.json").read_text())["position_table"] == "other"


def test_without_a_neck_the_encoder_is_imported_and_the_report_says_so(tmp_path):
    source = checkpoint(tmp_path / "backbone.pth", without(released(), "neck."))
    report = import_checkpoint(source, tmp_path / "out", "mmpretrain")
    assert report.files == ("encoder.safetensors", "encoder.json")
    assert "no decoder in the file" in str(report)
    assert "holds an mmpretrain MAE encoder\n" in str(report)
    theirs = run_norm(released(), "backbone.ln1", run_backbone(released(), images()))
    assert_near(torch.cat(load_encoder(tmp_path / "out")(images())[:2], dim=1), theirs)


def test_a_classifier(tmp_path):
    weights = released("classifier")
    report = import_checkpoint(checkpoint(tmp_path / "c.pth", weights), tmp_path / "out", "mmpretrain")
    assert report.files == ("classifier.safetensors", "classifier.json")
    assert "head: 7 classes, pool mean" in str(report)
    pooled = run_norm(weights, "backbone.ln2", run_backbone(weights, images())[:, 1:].mean(dim=1))
    logits = pooled @ weights["head.fc.weight"].T + weights["head.fc.bias"]
    assert_near(load_classifier(tmp_path / "out")(images()), logits)
    with pytest.raises(ValueError, match="final norm; got a classifier with mean pooling"):
        load_encoder(tmp_path / "c.pth")


def test_a_classifier_on_the_class_token(tmp_path):
    weights = released("classifier, class token")
    found = read_checkpoint(checkpoint(tmp_path / "c.pth", weights))
    first = run_norm(weights, "backbone.ln1", run_backbone(weights, images()))[:, 0]
    assert_near(found.classifier(images()), first @ weights["head.fc.weight"].T + weights["head.fc.bias"])


def converted_for_segmentation():
    """As the authors' converter writes it: no prefix, `norm`, and the patch projection under both names."""
    weights = {}
    for name, tensor in without(released(), "neck.").items():
        if name.startswith("backbone.patch_embed"):
            weights[name.replace("backbone.patch_embed.projection", "patch_embed.proj")] = tensor
        weights[name.replace("backbone.ln1", "norm").removeprefix("backbone.")] = tensor
    return weights


def test_a_file_converted_for_segmentation(tmp_path):
    weights = converted_for_segmentation()
    torch.save(weights, tmp_path / "seg.pth")
    report = import_checkpoint(tmp_path / "seg.pth", tmp_path / "out", "mmpretrain")
    assert "left out, no part of the network: patch_embed.proj.bias, patch_embed.proj.weight" in str(report)
    theirs = run_norm(released(), "backbone.ln1", run_backbone(released(), images()))
    assert_near(torch.cat(load_encoder(tmp_path / "out")(images())[:2], dim=1), theirs)
    weights["patch_embed.proj.bias"] = weights["patch_embed.proj.bias"] + 1
    with pytest.raises(ValueError, match=r"got another one under patch_embed\.proj\.bias\. Convert"):
        recognise(weights, "seg.pth")


def test_a_file_converted_for_detection_has_maes_names(tmp_path):
    """Its converter writes MAE's names, so MAE's importer reads it, with mmpretrain's table."""
    found = recognise(without(released(), "neck."), "c.pth")
    torch.save({"model": official_weights(found.encoder)}, tmp_path / "det.pth")
    advice_first = r"no backbone\.patch_embed\.projection\.weight .*format mae.* tensors: blocks.* and \d+ more\."
    with pytest.raises(ValueError, match=advice_first) as error:
        read_checkpoint(tmp_path / "det.pth", "mmpretrain")
    assert str(error.value).partition("tensors: ")[2].count(",") == 9, "ten names"
    report = import_checkpoint(tmp_path / "det.pth", tmp_path / "out", "mae")
    assert "positions: sincos, rows first, as stored" in str(report)


def test_maes_importer_names_the_other_one(tmp_path):
    with pytest.raises(ValueError, match=r"no patch_embed\.proj\.weight .*format mmpretrain"):
        read_checkpoint(checkpoint(tmp_path / "c.pth", released()), "mae")


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        (without(released(), "backbone.layers.1.ln2.bias"), ["missing: backbone.layers.1.ln2.bias"]),
        (without(released(), "neck.mask_token"), ["encoder and decoder", "missing: neck.mask_token"]),
        (released() | {"backbone.layers.0.gamma1.weight": torch.ones(96)}, ["unexpected: backbone.layers.0.gamma1"]),
        (released() | {"ema.steps": torch.ones(1)}, ["unexpected: ema.steps"]),
        (released() | {"blocks.0.norm1.weight": torch.ones(96)}, ["unexpected: blocks.0.norm1.weight"]),
        (
            released() | {"neck.decoder_blocks.1.ffn.layers.1.bias": torch.ones(5)},
            ["mis-shaped: neck.decoder_blocks.1.ffn.layers.1.bias (5,) instead of (64,)"],
        ),
        (
            {
                name.replace("backbone.layers.1.", "backbone.layers.4."): tensor
                for name, tensor in released("encoder").items()
            },
            ["missing: backbone.layers.1.attn", "unexpected: backbone.layers.4.attn"],
        ),
        (
            released("classifier, class token") | {"neck.bn.running_mean": torch.ones(96)},
            ["parts of a decoder and of a classifier"],
        ),
        (without(released(), "backbone.pos_embed"), ["no backbone.pos_embed of 3 dimensions"]),
        (without(released(), "backbone."), ["no backbone.patch_embed.projection.weight"]),
    ],
)
def test_what_is_not_this_layout_is_refused_with_its_keys(tmp_path, weights, parts):
    with pytest.raises(ValueError, match="mmpretrain MAE") as error:
        import_checkpoint(checkpoint(tmp_path / "c.pth", weights), tmp_path / "out", "mmpretrain", GIVEN)
    for part in parts:
        assert part in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_stored_pixels_mean_and_std_become_the_encoders():
    odd = released() | {
        "data_preprocessor.mean": torch.full((3, 1, 1), 127.5),
        "data_preprocessor.std": torch.full((3, 1, 1), 51.0),
    }
    found = recognise(odd, "odd.pth", GIVEN)
    assert found.left_out == ("data_preprocessor.mean", "data_preprocessor.std")
    assert (found.encoder.config.mean, found.encoder.config.std) == ((0.5,) * 3, (0.2,) * 3)
    assert recognise(pixels_of_stored(released()), "c.pth", GIVEN).encoder.config.mean == (
        0.485,
        0.456,
        0.406,
    )
    given = Given(decoder_heads=INNER_HEADS, mean=(0.1,) * 3, std=(0.3,) * 3)
    assert recognise(odd, "odd.pth", given).encoder.config.mean == (0.1,) * 3


def test_names_there_and_back():
    """ViT-B: 150 tensors in the backbone, 104 in the neck; each official name has one name there."""
    encoder = EncoderConfig(image_size=(4, 4), patch_size=4, width=8, depth=12, heads=2).build()
    decoder = DecoderConfig(width=8, depth=8, heads=2).build(8, 1, (1, 1), 48)
    names = mmpretrain_weights(encoder, decoder)
    assert sum(name.startswith("backbone.") for name in names) == 150
    assert sum(name.startswith("neck.") for name in names) == 104
    assert mmpretrain_name("decoder_blocks.3.mlp.fc1.bias") == "neck.decoder_blocks.3.ffn.layers.0.0.bias"

    weights = released()
    found = recognise(weights, "c.pth", GIVEN)
    back = mmpretrain_weights(found.encoder, found.decoder)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)
    classifier = Classifier(encoder, 3)
    assert {"backbone.ln2.weight", "head.fc.bias"} <= mmpretrain_weights(classifier).keys()


def test_a_file_alone_is_an_encoder_too(tmp_path):
    """As released: safetensors without a wrapper, float32."""
    weights = without(released(), "neck.")
    save_file({name: tensor.float() for name, tensor in weights.items()}, tmp_path / "epoch_300.safetensors")
    assert torch.equal(load_encoder(tmp_path / "epoch_300.safetensors").pos_embed, table(WIDTH).float())


class HistoryBuffer:
    """What mmengine's log values look like in a file: arrays, and a number."""

    def __init__(self):
        self.max_length = 1000000
        self._log_history, self._count_history = np.array([0.5, 0.25]), np.array([1, 1])


@pytest.fixture
def mmengine(monkeypatch):
    """A module of that name, there only while files are written."""
    name = "mmengine.logging.history_buffer"
    module = types.ModuleType(name)
    module.HistoryBuffer = HistoryBuffer
    with monkeypatch.context() as patch:
        for part in ("mmengine", "mmengine.logging"):
            patch.setitem(sys.modules, part, types.ModuleType(part))
        patch.setitem(sys.modules, name, module)
        patch.setattr(HistoryBuffer, "__module__", name)
        yield


def test_training_logs_in_the_file_are_passed_over(tmp_path, mmengine, monkeypatch):
    others = {
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "message_hub": {"log_scalars": {"train/loss": HistoryBuffer()}, "runtime_info": {"best": np.float64(0.25)}},
        "param_schedulers": [{"last_step": 3}],
    }
    source = checkpoint(tmp_path / "training.pth", released(), **others)
    monkeypatch.delitem(sys.modules, "mmengine.logging.history_buffer")  # nobody who imports has it
    found = read_checkpoint(source, "mmpretrain", GIVEN)
    assert torch.equal(found.encoder.pos_embed, table(WIDTH))


def test_a_log_in_place_of_weights_is_refused(tmp_path, mmengine):
    source = checkpoint(tmp_path / "c.pth", released() | {"backbone.cls_token": HistoryBuffer()})
    with pytest.raises(ValueError, match=r"got other things under backbone\.cls_token"):
        read_checkpoint(source, "mmpretrain", GIVEN)
