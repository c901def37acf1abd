import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer

from pantomim.formats.native import (
    exact_ratio,
    load_decoder,
    load_encoder_folder,
    read_description,
    save_decoder,
    save_encoder,
)
from pantomim.masking.random import RandomMasker
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.vit import Encoder, EncoderConfig

SCALE = {"divisor": 255.0, "rule": "uint8"}
SHAPES = [
    EncoderConfig(image_size=(16, 16), patch_size=4, width=24, depth=2, heads=3),
    EncoderConfig(image_size=(16, 24), patch_size=8, width=16, depth=1, heads=2, registers=3, mlp_ratio=2.5),
    EncoderConfig(
        image_size=(8, 8), patch_size=2, in_chans=1, width=16, depth=2, heads=4, class_token=False,
        position="learned", mean=(0.3,), std=(0.7,),
    ),
    EncoderConfig(
        image_size=(12, 8), patch_size=4, in_chans=5, width=16, depth=3, heads=2, class_token=False, registers=2,
        mean=(0.1, 0.2, 0.3, 0.4, 0.5), std=(1.0, 2.0, 3.0, 4.0, 5.0), drop_path=0.1,
    ),
]  # fmt: skip


def scrambled(config: EncoderConfig) -> Encoder:
    """An encoder none of whose weights are at their initial zeros and ones."""
    torch.manual_seed(0)
    encoder = config.build()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


@pytest.fixture
def saved(tmp_path):
    encoder = scrambled(SHAPES[0])
    save_encoder(tmp_path / "run", encoder, scale=SCALE, recipe="mae_test")
    return tmp_path / "run", encoder


@pytest.mark.parametrize("config", SHAPES)
def test_timm_gives_the_same_features(config, tmp_path):
    encoder = scrambled(config).eval()
    save_encoder(tmp_path, encoder, scale=SCALE, recipe="mae_test")
    description = json.loads((tmp_path / "encoder.json").read_text())
    model = VisionTransformer(**description["timm"]["kwargs"])
    model.load_state_dict(load_file(tmp_path / "encoder.safetensors"))
    images = torch.rand(3, config.in_chans, *config.image_size)
    mean, std = (torch.tensor(description[key]).view(-1, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        theirs = model.eval().forward_features((images - mean) / std)
        ours = encoder(images)
    torch.testing.assert_close(torch.cat([ours.prefix, ours.patches], dim=1), theirs, atol=2e-5, rtol=1e-4)


BEIT = EncoderConfig(
    image_size=(8, 12), patch_size=4, width=16, depth=2, heads=2, position="none", relative_position="shared",
    attention_bias="qv", layer_scale=0.1, initialisation="beit",
)  # fmt: skip
UNKNOWN_TO_TIMM = [
    replace(BEIT, attention_bias="qkv"),
    replace(BEIT, class_token=False),
    replace(BEIT, relative_position="none", registers=2),
    EncoderConfig(image_size=(8, 12), patch_size=4, width=16, depth=2, heads=2, layer_scale=0.1),
]


def test_timms_beit_gives_the_same_features(tmp_path):
    encoder = scrambled(BEIT).eval()
    save_encoder(tmp_path, encoder, scale=SCALE, recipe="beit_test")
    description = json.loads((tmp_path / "encoder.json").read_text())
    assert description["position_table"] == "none"
    assert description["timm"]["class"] == "beit.Beit"
    model = Beit(**description["timm"]["kwargs"]).eval()
    model.load_state_dict(load_file(tmp_path / "encoder.safetensors"))
    images = torch.rand(3, 3, 8, 12)
    with torch.inference_mode():
        theirs = model.forward_features((images - encoder.mean.view(-1, 1, 1)) / encoder.std.view(-1, 1, 1))
        ours = encoder(images)
    torch.testing.assert_close(torch.cat([ours.prefix, ours.patches], dim=1), theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("config", UNKNOWN_TO_TIMM)
def test_what_timm_does_not_have_is_not_claimed(config, tmp_path):
    save_encoder(tmp_path, scrambled(config), scale=SCALE, recipe="beit_test")
    assert "timm" not in json.loads((tmp_path / "encoder.json").read_text())


@pytest.mark.parametrize("config", [*SHAPES, BEIT, *UNKNOWN_TO_TIMM])
def test_round_trip_is_exact(config, tmp_path):
    encoder = scrambled(config)
    save_encoder(tmp_path, encoder, scale=SCALE, recipe="mae_test")
    state = torch.random.get_rng_state()
    loaded = load_encoder_folder(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state), "loading must not disturb anyone's random numbers"
    assert loaded.config == encoder.config == config
    assert not loaded.training
    images = torch.rand(2, config.in_chans, *config.image_size)
    for ours, theirs in zip(loaded(images)[:2], encoder.eval()(images)[:2], strict=True):
        assert torch.equal(ours, theirs)


def test_float64_stays_float64(tmp_path):
    encoder = scrambled(SHAPES[0]).double()
    save_encoder(tmp_path, encoder, scale=SCALE, recipe="mae_test")
    loaded = load_encoder_folder(tmp_path)
    assert torch.equal(loaded.pos_embed, encoder.pos_embed)
    assert loaded.pos_embed.dtype == torch.float64


def test_description(saved):
    folder, encoder = saved
    description = read_description(folder)
    assert description["encoder"]["width"] == encoder.width
    assert description["scale"] == SCALE
    assert description["recipe"] == "mae_test"
    assert len(description["sha256"]) == 64


def test_nothing_but_the_two_files_is_left(saved):
    folder, encoder = saved
    save_encoder(folder, encoder, scale=SCALE, recipe="again")
    assert sorted(path.name for path in folder.iterdir()) == ["encoder.json", "encoder.safetensors"]
    assert read_description(folder)["recipe"] == "again"


def test_a_failed_write_leaves_the_old_files(saved, monkeypatch):
    folder, _ = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def disk_full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pantomim.core.files.os.fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_encoder(folder, scrambled(SHAPES[0]), scale=SCALE, recipe="new")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_newer_format_is_refused_with_advice(saved):
    folder, _ = saved
    description = json.loads((folder / "encoder.json").read_text())
    (folder / "encoder.json").write_text(json.dumps({**description, "format_version": 2}))
    with pytest.raises(ValueError, match=r"format_version must be at most 1; got 2\..*upgrade"):
        load_encoder_folder(folder)


def test_truncated_weights_are_refused(saved):
    folder, _ = saved
    path = folder / "encoder.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"encoder\.safetensors must be a whole file"):
        load_encoder_folder(folder)


def test_files_of_two_runs_are_refused(saved, tmp_path):
    folder, encoder = saved
    with torch.no_grad():
        encoder.norm.bias.add_(1)
    save_encoder(tmp_path / "other", encoder, scale=SCALE, recipe="other")
    (folder / "encoder.safetensors").write_bytes((tmp_path / "other" / "encoder.safetensors").read_bytes())
    with pytest.raises(ValueError, match="another hash"):
        load_encoder_folder(folder)


def test_another_architecture_is_refused_with_its_keys(saved):
    folder, _ = saved
    description = json.loads((folder / "encoder.json").read_text())
    description["encoder"]["depth"] = 3
    description["encoder"]["class_token"] = False
    (folder / "encoder.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"missing: blocks\.2.*unexpected: cls_token.*mis-shaped: pos_embed"):
        load_encoder_folder(folder)


def test_a_folder_without_an_encoder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no encoder\.json"):
        load_encoder_folder(tmp_path)


@pytest.mark.parametrize("damage", ["{", "[]", '{"format_version": 1}'])
def test_a_damaged_description_is_refused(saved, damage):
    folder, _ = saved
    (folder / "encoder.json").write_text(damage)
    with pytest.raises(ValueError, match=r"encoder\.json must be a whole file"):
        load_encoder_folder(folder)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"width": 10**9}, r"width must be in \[1, 65536\]; got 1000000000"),
        ({"depth": 10**6}, r"depth must be in \[1, 1024\]"),
        ({"registers": 10**7}, r"registers must be in"),
        ({"mlp_ratio": 1e9}, r"mlp_ratio must be in"),
        ({"image_size": [10**6, 10**6]}, r"image_size must be in"),
        ({"width": 65_536, "heads": 4}, r"sizes of a network of [\d,]+ bytes, beside smaller weights"),
        ({"image_size": [65_536, 65_536], "relative_position": "blocks"}, r"sizes of a network of [\d,]+ bytes"),
    ],
    ids=str,
)
def test_sizes_that_no_weights_explain_take_no_memory(saved, size, message):
    folder, _ = saved
    description = json.loads((folder / "encoder.json").read_text())
    (folder / "encoder.json").write_text(json.dumps(description | {"encoder": description["encoder"] | size}))
    with pytest.raises(ValueError, match=rf"encoder\.json must be a whole file.*{message}"):
        load_encoder_folder(folder)


def test_decoder_round_trip(tmp_path):
    torch.manual_seed(0)
    decoder = DecoderConfig(width=16, depth=2, heads=4, mlp_ratio=2.0).build(24, 2, (3, 4), 12).eval()
    save_decoder(tmp_path, decoder)
    loaded = load_decoder(tmp_path)
    encoder = EncoderConfig(image_size=(12, 16), patch_size=4, width=24, depth=1, heads=3, registers=1).build()
    mask = RandomMasker(ratio=0.5)(2, (3, 4), torch.Generator().manual_seed(1))
    latent = encoder(torch.rand(2, 3, 12, 16), mask.ids_keep)
    assert torch.equal(loaded(latent, mask), decoder(latent, mask))
    assert not loaded.training


@pytest.mark.parametrize("width", [48, 96, 192, 1280])
def test_every_hidden_width_has_its_ratio(width):
    assert all(int(width * exact_ratio(hidden, width)) == hidden for hidden in range(1, 6000, 7))
