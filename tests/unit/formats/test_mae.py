import argparse
import math

import pytest
import torch
from foreign_files import official_weights

from pantomim.core.mask import Mask
from pantomim.formats import AS_PUBLISHED, Given, import_checkpoint, load_encoder, read_checkpoint
from pantomim.formats.mae import MAEFormat
from pantomim.formats.native import load_classifier, load_decoder, load_encoder_folder
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.heads import Classifier
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig

WIDTH, DEPTH, PATCH, SIDE, DECODER_WIDTH = 96, 2, 4, 12, 64
GIVEN = Given(decoder_heads=4)


def recognise(weights, source, given=AS_PUBLISHED):
    return MAEFormat().read(weights, source, given)


def block(prefix, width):
    shapes = {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "mlp.fc1.weight": (4 * width, width),
        "mlp.fc1.bias": (4 * width,),
        "mlp.fc2.weight": (width, 4 * width),
        "mlp.fc2.bias": (width,),
    }
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def official(kind, width=WIDTH, depth=DEPTH, seed=0):
    """Random weights under the names and shapes of the authors' checkpoints."""
    tokens = (SIDE // PATCH) ** 2 + 1
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, tokens, width),
        "patch_embed.proj.weight": (width, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (width,),
    }
    for index in range(depth):
        shapes |= block(f"blocks.{index}", width)
    if kind != "classifier":
        shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    if kind == "classifier":
        shapes |= {"fc_norm.weight": (width,), "fc_norm.bias": (width,)}
    if kind.startswith("classifier"):
        shapes |= {"head.weight": (7, width), "head.bias": (7,)}
    if kind == "full":
        inner = DECODER_WIDTH
        shapes |= {
            "mask_token": (1, 1, inner),
            "decoder_pos_embed": (1, tokens, inner),
            "decoder_embed.weight": (inner, width),
            "decoder_embed.bias": (inner,),
            **block("decoder_blocks.0", inner),
            "decoder_norm.weight": (inner,),
            "decoder_norm.bias": (inner,),
            "decoder_pred.weight": (PATCH * PATCH * 3, inner),
            "decoder_pred.bias": (PATCH * PATCH * 3,),
        }
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) / 10 for name, shape in shapes.items()}


def checkpoint(path, weights):
    """As the authors' training script saves it."""
    args = argparse.Namespace(model="mae_vit_base_patch16", lr=2.4e-3, norm_pix_loss=True)
    torch.save({"model": weights, "optimizer": {"state": {}}, "epoch": 1599, "scaler": {}, "args": args}, path)
    return path


def images():
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("encoder", "encoder"),
        ("full", "encoder and decoder"),
        ("classifier", "classifier"),
        ("classifier, class token", "classifier"),
    ],
)
def test_each_layout_is_recognised_and_comes_back_unchanged(tmp_path, kind, name):
    weights = official(kind)
    found = read_checkpoint(checkpoint(tmp_path / "mae.pth", weights), "mae", GIVEN)
    assert found.kind == name
    config = found.encoder.config
    assert (config.image_size, config.patch_size, config.width, config.depth) == ((SIDE, SIDE), PATCH, WIDTH, DEPTH)
    assert config.heads == ENCODER_SIZES["micro"]["heads"]
    back = official_weights(*filter(None, (found.classifier or found.encoder, found.decoder)))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)


def test_published_sizes_have_the_expected_number_of_tensors():
    """Spec: 150 / 294 / 390 tensors in an encoder, 254 / 398 / 494 with decoder, 152 / 296 / 392 in a classifier."""
    decoder = DecoderConfig(width=8, depth=8, heads=2).build(8, 1, (1, 1), 48)
    for depth, numbers in ((12, (150, 254, 152)), (24, (294, 398, 296)), (32, (390, 494, 392))):
        config = EncoderConfig(image_size=(4, 4), patch_size=4, width=8, depth=depth, heads=2)
        assert len(official_weights(config.build())) == numbers[0]
        assert len(official_weights(config.build(), decoder)) == numbers[1]
        assert len(official_weights(Classifier(config.build(), 3))) == numbers[2]


def test_import_writes_our_files(tmp_path):
    source = checkpoint(tmp_path / "mae_full.pth", official("full"))
    report = import_checkpoint(source, tmp_path / "out", "mae", GIVEN)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(report.files)
    assert "encoder: 96 wide, 2 deep, 3 heads, patch 4, 3 x 12 x 12" in str(report)
    direct = read_checkpoint(source, "mae", GIVEN)
    encoder, decoder = load_encoder_folder(tmp_path / "out"), load_decoder(tmp_path / "out")
    mask = Mask.from_scores(torch.rand(2, 9), 5)
    ours = decoder(encoder(images(), mask.ids_keep), mask)
    assert torch.equal(ours, direct.decoder(direct.encoder(images(), mask.ids_keep), mask))
    assert torch.equal(load_encoder(tmp_path / "out")(images()).patches, encoder(images()).patches)


def test_import_of_a_classifier(tmp_path):
    source = checkpoint(tmp_path / "mae_finetuned.pth", official("classifier"))
    report = import_checkpoint(source, tmp_path / "out", "mae")
    assert report.files == ("classifier.safetensors", "classifier.json")
    assert "head: 7 classes, pool mean" in str(report)
    ours = load_classifier(tmp_path / "out")
    assert torch.equal(ours(images()), read_checkpoint(source).classifier(images()))
    with pytest.raises(ValueError, match="final norm; got a classifier with mean pooling"):
        load_encoder(source)


def test_a_classifier_on_the_class_token_also_gives_its_encoder(tmp_path):
    source = checkpoint(tmp_path / "mae_finetuned.pth", official("classifier, class token"))
    report = import_checkpoint(source, tmp_path / "out", "mae")
    assert report.files[::2] == ("encoder.safetensors", "classifier.safetensors")
    encoder, classifier = load_encoder_folder(tmp_path / "out"), load_classifier(tmp_path / "out")
    torch.testing.assert_close(classifier.head(encoder(images()).prefix[:, 0]), classifier(images()))


def test_import_does_not_overwrite(tmp_path):
    source = checkpoint(tmp_path / "mae.pth", official("encoder"))
    import_checkpoint(source, tmp_path / "out", "mae")
    before = (tmp_path / "out" / "encoder.json").read_bytes()
    with pytest.raises(ValueError, match=r"out must not hold weights yet; got .*out with encoder"):
        import_checkpoint(source, tmp_path / "out", "mae")
    assert (tmp_path / "out" / "encoder.json").read_bytes() == before


def test_load_encoder_reads_official_files(tmp_path):
    source = checkpoint(tmp_path / "mae.pth", official("encoder"))
    torch.testing.assert_close(
        load_encoder(source)(images()).patches, read_checkpoint(source).encoder(images()).patches
    )


def test_timm_gives_the_same_features(tmp_path):
    from timm.models.vision_transformer import VisionTransformer

    weights = official("encoder")
    model = VisionTransformer(
        img_size=SIDE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=3, num_classes=0, fc_norm=False
    ).eval()
    model.load_state_dict(weights)
    encoder = recognise(weights, "weights").encoder
    normalised = (images() - encoder.mean.view(-1, 1, 1)) / encoder.std.view(-1, 1, 1)
    features = encoder(images())
    torch.testing.assert_close(torch.cat(features[:2], dim=1), model.forward_features(normalised))


def rename(weights, old, new):
    return {new if name == old else name: tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        (
            {k: v for k, v in official("encoder").items() if k != "blocks.1.norm2.bias"},
            ["missing: blocks.1.norm2.bias"],
        ),
        (official("encoder") | {"rope.freqs": torch.ones(3)}, ["unexpected: rope.freqs"]),
        (
            official("encoder") | {"blocks.1.mlp.fc2.bias": torch.ones(5)},
            ["mis-shaped: blocks.1.mlp.fc2.bias (5,) instead of (96,)"],
        ),
        (
            rename(official("full"), "decoder_pred.bias", "decoder_pred.b"),
            ["missing: decoder_pred.bias", "unexpected: decoder_pred.b"],
        ),
        (official("classifier") | {"norm.weight": torch.ones(96)}, ["unexpected: norm.weight"]),
        (
            {k.replace("blocks.1.", "blocks.5."): v for k, v in official("encoder").items()},
            ["missing: blocks.1.attn", "unexpected: blocks.5.attn"],
        ),
        (official("full") | {"head.weight": torch.ones(7, 96)}, ["parts of a decoder and of a classifier"]),
        (
            {"conv1.weight": torch.ones(4, 3, 7, 7), "fc.bias": torch.ones(2)},
            ["holds 2 tensors: conv1.weight, fc.bias"],
        ),
        (
            {k: v for k, v in official("encoder").items() if k != "pos_embed"},
            ["no pos_embed of 3 dimensions", "blocks.0.attn.proj.bias, blocks.0.attn.proj.weight"],
        ),
        (
            {k: v for k, v in official("full").items() if k != "mask_token"},
            ["encoder and decoder", "missing: mask_token"],
        ),
    ],
)
def test_what_is_no_official_layout_is_refused_with_its_keys(tmp_path, weights, parts):
    with pytest.raises(ValueError, match="official MAE") as error:
        import_checkpoint(checkpoint(tmp_path / "mae.pth", weights), tmp_path / "out", "mae", GIVEN)
    for part in parts:
        assert part in str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_weights_do_not_tell_must_be_given():
    odd = official("encoder", width=40)
    with pytest.raises(ValueError, match=r"heads must be given for width 40; known are 96, 192"):
        recognise(odd, "odd.pth")
    assert recognise(odd, "odd.pth", Given(heads=5)).encoder.config.heads == 5
    with pytest.raises(ValueError, match="decoder_heads must be given for width 64"):
        recognise(official("full"), "odd.pth")

    wide = official("encoder") | {"pos_embed": torch.zeros(1, 13, WIDTH)}
    with pytest.raises(ValueError, match="image_size must be given for a grid that is not square; got 12 patches"):
        recognise(wide, "wide.pth")
    assert recognise(wide, "wide.pth", Given(image_size=(12, 16))).encoder.grid == (3, 4)

    grey = official("encoder") | {"patch_embed.proj.weight": torch.zeros(WIDTH, 1, PATCH, PATCH)}
    with pytest.raises(ValueError, match="mean and std must both be given for 1 channels"):
        recognise(grey, "grey.pth")
    assert recognise(grey, "grey.pth", Given(mean=(0.5,), std=(0.2,))).encoder.in_chans == 1
    with pytest.raises(ValueError, match=r"must both be given for 3 channels; got \(0.5, 0.5, 0.5\) and None"):
        recognise(official("encoder"), "half.pth", Given(mean=(0.5,) * 3))


def test_heads_matter():
    """Why they are asked for: nothing else would show."""
    odd = {name: 10 * tensor for name, tensor in official("encoder", width=40).items()}
    few, many = (recognise(odd, "odd.pth", Given(heads=heads)).encoder for heads in (2, 10))
    assert not torch.allclose(few(images()).patches, many(images()).patches, atol=1e-3)


def test_double_precision_survives():
    weights = {name: tensor.double() for name, tensor in official("encoder").items()}
    encoder = recognise(weights, "weights").encoder
    assert encoder(images().double()).patches.dtype == torch.float64
    assert math.isclose(encoder.mean[0].item(), 0.485, rel_tol=1e-7)
