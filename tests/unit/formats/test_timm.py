import itertools
import pickle
from argparse import Namespace

import pytest
import timm
import torch
from foreign_files import Bomb
from safetensors.torch import save_file

from pantomim.formats.timm import TimmEncoder, as_encoder, load_timm
from pantomim.nn.vit import Encoder

TINY = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 16}
# The variants of timm's ViT that are the same network as our Encoder up to the final norm, and those that are not.
SAME = [
    {},
    {"img_size": (32, 48)},
    {"class_token": False, "global_pool": ""},
    {"reg_tokens": 2},
    {"reg_tokens": 2, "no_embed_class": True},
    {"class_token": False, "global_pool": "avg", "fc_norm": False, "mlp_ratio": 3.0},
    {"class_token": False, "global_pool": "map"},
    {"dynamic_img_size": True},
]
DIFFERENT = [
    {"init_values": 1e-5},
    {"pre_norm": True},
    {"qkv_bias": False},
    {"qk_norm": True},
    {"act_layer": "quick_gelu"},
    {"act_layer": "gelu_tanh"},
    {"norm_layer": "rmsnorm"},
    {"global_pool": "avg"},  # its norm stands after the pooling
    {"final_norm": False},
    {"pos_embed": "none"},
]


def tiny_vit(**variant: object) -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, **{**TINY, **variant}).eval()
    size = variant.get("img_size", 32)
    model.pretrained_cfg = {
        **model.pretrained_cfg,
        "input_size": (3, *(size if isinstance(size, tuple) else (size,) * 2)),
    }
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def assert_same_features(encoder, model):
    images = torch.rand(2, 3, *encoder.image_size)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        theirs = model.forward_features((images - mean) / std)
        ours = encoder(images)
    torch.testing.assert_close(torch.cat([ours.prefix, ours.patches], 1), theirs, atol=2e-5, rtol=1e-4)
    assert ours.patches.shape == (2, encoder.grid[0] * encoder.grid[1], encoder.width)


@pytest.mark.parametrize("variant", SAME, ids=str)
def test_plain_transformers_become_our_encoder(variant):
    model = tiny_vit(**variant)
    encoder = as_encoder(model, "tiny")
    assert isinstance(encoder, Encoder)
    assert not encoder.training
    assert_same_features(encoder, model)


@pytest.mark.parametrize("variant", DIFFERENT, ids=str)
def test_other_transformers_are_wrapped(variant):
    model = tiny_vit(**variant)
    encoder = as_encoder(model, "tiny")
    assert isinstance(encoder, TimmEncoder)
    assert_same_features(encoder, model)
    assert encoder.num_prefix == 1
    assert encoder.grid == (2, 2)


@pytest.mark.parametrize(
    ("name", "grid", "width"),
    [("resnet10t", (6, 6), 512), ("convnext_atto", (7, 7), 320), ("test_vit2", (10, 10), 64)],
)
def test_other_architectures(name, grid, width):
    encoder = load_timm(name, pretrained=False)
    assert not encoder.training
    with torch.inference_mode():
        features = encoder(torch.rand(1, 3, *encoder.image_size))
    assert encoder.grid == grid
    assert features.patches.shape == (1, grid[0] * grid[1], width)
    assert features.prefix.shape == (1, encoder.num_prefix, width)


def test_cells_of_a_feature_map_in_raster_order():
    model = timm.create_model("resnet10t", pretrained=False, num_classes=0).eval()
    encoder = as_encoder(model, "resnet10t")
    images = torch.rand(1, 3, *encoder.image_size)
    with torch.inference_mode():
        cells = model.forward_features((images - encoder.mean.view(-1, 1, 1)) / encoder.std.view(-1, 1, 1))
        patches = encoder(images).patches
    assert torch.equal(patches[0, encoder.grid[1] + 2], cells[0, :, 1, 2])


def test_channels_last_maps():
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", pretrained=False, num_classes=0, depths=(1, 1, 1, 1)
    ).eval()
    encoder = as_encoder(model, "swin")
    images = torch.rand(1, 3, *encoder.image_size)
    with torch.inference_mode():
        cells = model.forward_features((images - encoder.mean.view(-1, 1, 1)) / encoder.std.view(-1, 1, 1))
        features = encoder(images)
    assert torch.equal(features.patches.view(1, 7, 7, -1), cells)
    assert features.prefix.shape == (1, 0, 768)


@pytest.mark.parametrize(("indices", "stop_early"), [(None, False), (2, False), ([0, -2], True), ([1], True)])
def test_intermediates_of_a_wrapped_model_are_timms_own(indices, stop_early):
    model = tiny_vit(init_values=1.0, depth=4, reg_tokens=2)
    encoder, images = as_encoder(model, "tiny"), torch.rand(2, 3, 32, 32)
    given = encoder.standardised(images)
    for norm, shape in itertools.product((False, True), ("NCHW", "NLC")):
        asked = {"indices": indices, "norm": norm, "output_fmt": shape, "stop_early": stop_early}
        with torch.no_grad():
            ours, theirs = (
                each(seen, **asked, return_prefix_tokens=True)
                for each, seen in ((encoder.forward_intermediates, images), (model.forward_intermediates, given))
            )
            alone = encoder.forward_intermediates(images, **asked, intermediates_only=True)
        torch.testing.assert_close(ours[0], theirs[0])
        torch.testing.assert_close(ours[1], [tuple(pair) for pair in theirs[1]])
        torch.testing.assert_close(alone, [patches for patches, _ in theirs[1]])


def test_intermediates_of_a_model_without_blocks_are_its_output():
    encoder, images = load_timm("test_resnet", pretrained=False), torch.rand(1, 3, 160, 160)
    tokens, (cells,) = encoder.forward_intermediates(images)
    assert torch.equal(cells.flatten(2).mT, tokens)
    with pytest.raises(ValueError, match="indices must be from 1 to the 1 blocks; got 2"):
        encoder.forward_intermediates(images, 2)


def test_wrapped_models_refuse_parts_of_images():
    encoder = as_encoder(tiny_vit(init_values=1.0), "tiny")
    images = torch.rand(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"ids_keep must be None"):
        encoder(images, torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"images must be \(B, 3, 32, 32\)"):
        encoder(images[:, :, :16])


@pytest.mark.parametrize("num_classes", [None, 0, 7], ids=["timm's classes", "no head", "fine-tuned"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_on_disk_in_timms_layout(tmp_path, suffix, num_classes):
    torch.manual_seed(0)
    model = timm.create_model("test_vit", pretrained=False, num_classes=num_classes).eval()
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path)
    encoder = load_timm(f"test_vit@{path}")
    assert isinstance(encoder, Encoder)
    assert_same_features(encoder, model)


def test_a_file_that_does_not_fit_is_refused_with_its_keys(tmp_path):
    save_file({"something": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"weights that timm reads for test_vit(.|\n)*Missing key(.|\n)*something"):
        load_timm(f"test_vit@{tmp_path / 'other.safetensors'}")


def test_a_file_with_one_tensor_missing_is_refused(tmp_path):
    weights = timm.create_model("test_vit", pretrained=False).state_dict()
    del weights["blocks.1.norm1.bias"]
    save_file(weights, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=r"blocks\.1\.norm1\.bias"):
        load_timm(f"test_vit@{tmp_path / 'part.safetensors'}")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.safetensors must be a file of weights; got nothing there"):
        load_timm(f"test_vit@{tmp_path / 'absent.safetensors'}")


def test_a_file_with_code_is_refused_and_not_executed(tmp_path):
    canary = tmp_path / "canary"
    torch.save({"model": Bomb(canary)}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth must hold weights.*It was not executed") as error:
        load_timm(f"test_vit@{tmp_path / 'evil.pth'}")
    assert "retry" not in str(error.value)  # as timm's message advises, to execute it
    assert not canary.exists()


def test_a_pickle_that_poses_as_arrays_is_refused(tmp_path):
    (tmp_path / "weights.npz").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"timm:vit_tiny_patch16_224@.*weights\.npz must be weights that timm reads"):
        load_timm(f"vit_tiny_patch16_224@{tmp_path / 'weights.npz'}")


@pytest.mark.parametrize("entry", ["state_dict_ema", "model_ema", "state_dict", "model"])
def test_checkpoints_of_a_training(tmp_path, entry):
    torch.manual_seed(0)
    model = timm.create_model("test_vit", pretrained=False).eval()
    wrapped = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    others = {"model": {"head.bias": torch.zeros(1)}} if entry != "model" else {}
    torch.save({"epoch": 3, "args": Namespace(lr=0.1), **others, entry: wrapped}, tmp_path / "last.pth.tar")
    assert_same_features(load_timm(f"test_vit@{tmp_path / 'last.pth.tar'}"), model)


def test_weights_of_a_file_are_not_held_twice(tmp_path):
    model = timm.create_model("resnet10t", pretrained=False)
    save_file(model.state_dict(), tmp_path / "resnet.safetensors")
    encoder = load_timm(f"resnet10t@{tmp_path / 'resnet.safetensors'}")
    assert torch.equal(encoder.model.conv1[0].weight, model.conv1[0].weight)
    assert "state_dict" not in encoder.model.pretrained_cfg


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"got vit_tinny_patch16_224\. Did you mean vit_tiny_patch16_224"):
        load_timm("vit_tinny_patch16_224")


def test_an_impossible_download_says_what_to_do(monkeypatch):
    def offline(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError("cannot reach the hub")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(ConnectionError, match=r"timm:test_vit@FILE"):
        load_timm("test_vit")
