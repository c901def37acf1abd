"""Networks of timm and transformers as our encoder: the same features, at two sizes, whole and in part."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file

from pantomim.core.batch import Batch
from pantomim.engine.initial import start_from
from pantomim.evaluate.features import random_init_encoder
from pantomim.formats import load, load_encoder, load_trainable
from pantomim.formats.exports.network import open_network
from pantomim.formats.hf import our_names
from pantomim.formats.native import load_classifier, load_encoder_folder, save_classifier, save_encoder
from pantomim.formats.timm import TimmEncoder, as_encoder
from pantomim.methods.segment import SegmentConfig
from pantomim.nn.heads import Classifier
from pantomim.nn.resize import adapted_encoder
from pantomim.nn.rope import Rope, rope_of, rope_table, rotate
from pantomim.nn.segmenter import UPerNetConfig
from pantomim.nn.vit import Encoder
from pantomim.recipes import prepare
from pantomim.teachers.choice import TeacherConfig

REAL = Path(__file__).parents[4] / "shared" / "models" / "dinov2_small"  # beside the repository
HALF = (0.5, 0.5, 0.5)
TIMM = {  # patch size, and what the name does not say
    "vit_small_patch14_dinov2": (14, {}),
    "vit_small_patch14_reg4_dinov2": (14, {}),
    "vit_giant_patch14_reg4_dinov2": (14, {}),
    "deit3_small_patch16_224": (16, {}),
    "vit_base_patch16_clip_224": (16, {}),
    "vit_base_patch16_clip_quickgelu_224": (16, {}),
    "vit_base_patch16_siglip_224": (16, {"act_layer": "gelu_tanh"}),
    "beit_base_patch16_224": (16, {}),
    "beitv2_base_patch16_224": (16, {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}),
    "eva02_tiny_patch14_224": (14, {}),
    "eva02_base_patch14_224": (14, {}),
    "eva_giant_patch14_224": (14, {}),
    "vit_small_patch16_dinov3": (16, {}),
    "vit_small_patch16_dinov3_qkvb": (16, {}),
    "vit_small_plus_patch16_dinov3": (16, {}),
    "vit_tiny_patch16_224": (16, {"qkv_bias": False}),
    "vit_small_patch16_224": (16, {"qk_norm": True}),
    "eva02_small_patch14_224": (14, {"qk_norm": True}),
}
HF = {
    "ViT": {},
    "Dinov2": {},
    "Dinov2, gated": {"use_swiglu_ffn": True},
    "Dinov2WithRegisters": {},
    "DINOv3ViT": {"num_register_tokens": 4},
    "DINOv3ViT, gated": {"use_gated_mlp": True, "hidden_act": "silu"},
    "SiglipVision": {},
    "CLIPVision": {},
    "Beit": {"use_relative_position_bias": True},
    "Beit, shared": {"use_shared_relative_position_bias": True, "use_mean_pooling": False},
    "Beit, absolute": {"use_absolute_position_embeddings": True},
}
UNLIKE = {  # what is in the way
    "vit_tiny_patch16_224": ({"norm_layer": "rmsnorm"}, "layer norms of eps none"),
    "eva02_base_patch16_clip_224": ({}, r"unexpected: blocks\.0\.attn\.norm\.bias"),
    "vit_pe_core_tiny_patch16_384": ({}, "rotary positions of another kind"),
    "convnext_atto": ({"depths": (1, 1, 1, 1)}, r"got ConvNeXt, .*no patch_embed\.proj\.weight"),
    "swin_tiny_patch4_window7_224": ({"depths": (1, 1, 1, 1)}, r"got SwinTransformer, .*no blocks\.0"),
    "test_resnet": ({}, "got ResNet, .*as prepare.teacher"),
}


def perturbed(model):
    """No gamma, norm, bias or token at a value at which it has no effect."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * (0.1 if weight.abs().sum() < 0.9 * weight.numel() else 0.3))
    return model.eval()


def of_timm(name, patch_size, **variant):
    sizes = {"img_size": 4 * patch_size, "embed_dim": 48, "depth": 2, "num_heads": 3} if patch_size else {}
    model = perturbed(timm.create_model(name, pretrained=False, num_classes=0, **(sizes | variant)))
    side = 4 * patch_size or 224
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, side, side), "mean": HALF}
    return as_encoder(model, f"timm:{name}")


def of_hf(name, folder, **variant):
    kind, sizes = name.partition(",")[0], {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
    config = getattr(transformers, f"{kind}Config")(
        **sizes, intermediate_size=64, image_size=32, patch_size=8, **variant
    )
    perturbed(getattr(transformers, f"{kind}Model")(config)).save_pretrained(folder)
    about = {"image_mean": HALF, "image_std": HALF, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return f"hf:{folder}"


def of_clip(library, folder):
    """OpenAI's network at 32 pixels, in two libraries' files."""
    sizes = {"image_size": 32, "patch_size": 8, "width": 128, "layers": 2, "mlp_ratio": 2.0}
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
    about = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": sizes, "text_cfg": text}
    (folder / "of_32.json").write_text(json.dumps(about))
    open_clip.add_model_config(folder / "of_32.json")
    torch.save(perturbed(open_clip.create_model("of_32")).state_dict(), folder / "clip.pt")
    return f"{'clip:' if library == 'clip' else 'open_clip:of_32@'}{folder / 'clip.pt'}"


def of_plain_timm(folder):
    """timm's plain network, which is ours as it is loaded, at 160 pixels."""
    save_file(perturbed(timm.create_model("test_vit", num_classes=0)).state_dict(), folder / "vit.safetensors")
    return f"timm:test_vit@{folder / 'vit.safetensors'}"


def joined(encoder, images, ids=None):
    with torch.no_grad():
        features = encoder(images, ids)
    return torch.cat([features.prefix, features.patches], dim=1)


def difference(encoder, wrapped, size):
    """The largest of features at this size, relative to the largest; the masked forward is checked on the way."""
    assert isinstance(encoder, Encoder)
    ours, theirs = adapted_encoder(encoder, replace(encoder.config, image_size=size)), wrapped.resized(size)
    images = torch.rand(2, 3, *size)
    whole, count, prefix = joined(ours, images), ours.num_patches, ours.num_prefix
    for ids in (torch.arange(count).expand(2, -1), torch.stack([torch.randperm(count) for _ in range(2)])):
        expected = torch.cat([whole[:, :prefix], whole[:, prefix:].take_along_dim(ids.unsqueeze(2), 1)], dim=1)
        torch.testing.assert_close(joined(ours, images, ids), expected, atol=2e-5, rtol=0)
    return float((whole - joined(theirs, images)).abs().max() / whole.abs().max())


@pytest.mark.filterwarnings("ignore:torch.searchsorted", "ignore:Using a non-tuple sequence")  # timm's own
@pytest.mark.parametrize("name", TIMM)
def test_a_network_of_timm_is_our_encoder(name):
    patch_size, variant = TIMM[name]
    wrapped = of_timm(name, patch_size, **variant)
    encoder = wrapped.trainable()
    assert encoder.config.mean == HALF
    assert encoder.config.interpolation == "bicubic"
    for size in ((4, 4), (5, 3)):
        assert difference(encoder, wrapped, (size[0] * patch_size, size[1] * patch_size)) < 1e-5


@pytest.mark.parametrize("name", HF)
def test_a_network_of_transformers_is_our_encoder(tmp_path, name):
    spec = of_hf(name, tmp_path, **HF[name])
    encoder, wrapped = load_trainable(spec), load_encoder(spec)
    assert encoder.config.interpolation == "bilinear"
    assert difference(encoder, wrapped, (32, 32)) < 1e-5
    resized, drawn = wrapped.resized((40, 24)), random_init_encoder(wrapped, 0)
    assert resized.interpolation == drawn.interpolation == "bilinear"
    twin = wrapped.untrained().model  # new blocks start as the library's
    scales = our_names(twin, twin.state_dict()).get("blocks.0.gamma_1")
    assert encoder.config.layer_scale == (None if scales is None else pytest.approx(float(scales[0])))
    if encoder.config.relative_position == "none":  # the library stretches BEiT's tables in its own way
        assert difference(encoder, wrapped, (40, 24)) < 1e-5


@pytest.mark.parametrize("library", ["timm", "clip", "open_clip"])
def test_loaded_taught_trained_and_exported_it_is_one_network_at_another_size(tmp_path, library):
    spec = of_plain_timm(tmp_path) if library == "timm" else of_clip(library, tmp_path)
    trained = load_trainable(spec)
    for height, width in ((4, 4), (12, 7)):
        size = (height * trained.patch_size, width * trained.patch_size)
        loaded, images = load(spec, size), torch.rand(2, 3, *size)
        ours, expected = adapted_encoder(trained, replace(trained.config, image_size=size)), joined(loaded, images)
        teacher = TeacherConfig(source=spec, output="norm").build(ours)
        for same in (ours, teacher, open_network(spec, load_encoder, size).module):
            assert (joined(same, images) - expected).abs().max() < 1e-5 * expected.abs().max()
    if library == "timm":
        model, (mean, std) = timm.create_model("test_vit", num_classes=0, pretrained=False), trained.statistics
        timm.models.load_checkpoint(model, tmp_path / "vit.safetensors")
        theirs = TimmEncoder(model.eval(), spec, trained.image_size, mean, std, lambda: model).resized(size)
        torch.testing.assert_close(joined(theirs, images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", UNLIKE)
def test_what_is_in_the_way_is_named(name):
    variant, named = UNLIKE[name]
    wrapped = of_timm(name, 0 if "depths" in variant or name == "test_resnet" else 16, **variant)
    with pytest.raises(ValueError, match=f"for its training to be continued; .*{named}"):
        wrapped.trainable()


def test_weights_that_compute_something_else_are_refused(monkeypatch):
    wrapped = of_timm("vit_small_patch16_dinov3", 16)
    monkeypatch.setattr("pantomim.formats.timm._rope", lambda theirs, grid: Rope(50.0))
    with pytest.raises(ValueError, match="with the same weights it computes something else"):
        wrapped.trainable()


@pytest.mark.parametrize("name", ["vit_small_plus_patch16_dinov3", "eva02_base_patch14_224"])
def test_patches_that_are_dropped_are_not_touched(name):
    encoder = of_timm(name, TIMM[name][0]).trainable()
    images, side = torch.rand(1, 3, *encoder.image_size), encoder.patch_size
    kept = torch.tensor([[5, 0, 10]])
    seen = joined(encoder, images, kept)
    images[:, :, :side, side : 2 * side] = math.nan  # patch 1
    assert torch.equal(joined(encoder, images, kept), seen)


@pytest.mark.parametrize("name", ["vit_small_plus_patch16_dinov3", "eva02_base_patch14_224", "beit_base_patch16_224"])
def test_our_files_keep_all_of_it(tmp_path, name):
    encoder = of_timm(name, TIMM[name][0]).trainable()
    images, about = torch.rand(2, 3, *encoder.image_size), {"scale": {"rule": "", "divisor": 1.0}, "recipe": "mae"}
    expected = joined(encoder, images)
    save_encoder(tmp_path / "encoder", encoder, **about)
    assert torch.equal(joined(load_encoder_folder(tmp_path / "encoder"), images), expected)
    classifier = Classifier(encoder, 3, "mean").eval()
    save_classifier(tmp_path / "classifier", classifier, **about)
    assert torch.equal(load_classifier(tmp_path / "classifier")(images), classifier(images))
    save_encoder(tmp_path / "tuned", classifier.plain_encoder(), **about)  # it has a final norm now
    tuned = load_encoder_folder(tmp_path / "tuned")(images).patches
    torch.testing.assert_close(tuned, classifier.fc_norm(classifier.encoder(images).patches))


@pytest.mark.parametrize("reference", [None, (8, 8)])
@pytest.mark.parametrize(("down", "right"), [(0, 3), (2, 0), (3, 1)])
def test_products_depend_on_how_far_apart_patches_are(down, right, reference):
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    table = rope_table(Rope(100.0, "patches", reference), (8, 8), 8, num_prefix=1)
    start, shift = torch.tensor([[9, 18]]), 8 * down + right

    def product(ids):
        turned = [rotate(part, rope_of(table, ids[:, [i]], 1)[:, 1:]) for i, part in enumerate((query, key))]
        return turned[0] @ turned[1].mT

    torch.testing.assert_close(product(start), product(start + shift))
    assert torch.equal(rope_of(table, start, 1)[:, 0], torch.cat([torch.ones(1, 8), torch.zeros(1, 8)], dim=1))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_plus_patch16_dinov3", "beit_base_patch16_224"])
def test_training_continues_from_it(tmp_path, caplog, monkeypatch, name):
    encoder = of_timm(name, 16, depth=4)  # of a plain one already ours, but for how it is resampled
    monkeypatch.setattr("pantomim.formats.LIBRARIES", {"timm": lambda name: encoder})
    images = np.full((20, 80, 80, 3), 40, np.uint8)
    images[:, ::2] = 60
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(20) % 2)
    chosen = {"data": str(tmp_path / "images.npz"), "init": f"timm:{name}"}
    for recipe, trains in (("mae", "encoder"), ("finetune_mae", "classifier")):
        method = prepare(recipe, **chosen, trains=trains).config.method.build()
        assert (method.encoder.config.mean, method.encoder.config.resampling) == (HALF, "timm")
        assert "Starting from the encoder" in start_from(f"timm:{name}", method)
        batch = Batch(torch.rand(2, 3, *method.encoder.image_size), torch.arange(2), torch.arange(2), 0, 2)
        method.train()(batch, method.draw(batch, 0, torch.Generator().manual_seed(0)))["loss"].backward()
        assert all(weight.grad is not None for name, weight in method.encoder.named_parameters() if "blocks" in name)
        if hasattr(method, "decoder"):
            assert method.encoder.image_size == (80, 80)
            there = adapted_encoder(load_trainable(f"timm:{name}"), method.encoder.config)
            assert torch.equal(joined(method.encoder.eval(), batch.images), joined(there, batch.images))
    assert "another mean and std than those" in caplog.text
    start = load_trainable(f"timm:{name}")
    segmenter = SegmentConfig(encoder=start.config, num_classes=2, head=UPerNetConfig(channels=8)).build()
    start_from(f"timm:{name}", segmenter)
    seen = torch.rand(1, 3, *start.image_size)
    assert torch.equal(joined(segmenter.exports()["encoder"].eval(), seen), joined(start, seen))


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="needs DINOv2's weights")
def test_real_weights():
    encoder, wrapped = load_trainable(f"hf:{REAL}"), load_encoder(f"hf:{REAL}")
    assert encoder.config.image_size == (518, 518)
    assert encoder.config.interpolation == "bicubic"
    assert difference(encoder, wrapped, (56, 70)) < 1e-5
