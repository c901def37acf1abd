"""One test a source: small random networks, written to disk in that source's own format and read as teachers."""

import json
import sys
from dataclasses import replace
from types import ModuleType

import open_clip
import pytest
import timm
import tiny
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from pantomim.formats import load_encoder
from pantomim.formats.native import save_tokenizer
from pantomim.nn.dvae import DVAEEncoder, DVAENetworks, DVAESizes, map_pixels
from pantomim.teachers.choice import TeacherConfig
from pantomim.teachers.encoder import EncoderTeacher

STUDENT = tiny.ENCODER  # 16 pixels, patches of 4
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def images(side: int = 16) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def standardised(given: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    return (given - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


def shaken(model: nn.Module) -> nn.Module:
    """No parameter as it was first drawn, so that each of them is seen."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def teacher_of(source: str, student=STUDENT, **settings):
    """A teacher that keeps what all of them promise."""
    built = student.build()
    teacher = TeacherConfig(source, **settings).build(built).train()
    given = images(student.image_size[0])
    found = teacher(given)
    assert teacher.grid == student.grid
    assert found.patches.shape == (2, student.grid[0] * student.grid[1], teacher.width)
    assert found.patches.isfinite().all()
    assert found.attention is None
    assert teacher.frozen
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher(given.clone().requires_grad_()).patches.requires_grad
    torch.testing.assert_close(teacher(given).patches, found.patches, rtol=0, atol=0)
    for query in teacher.queries:
        attention = teacher(given, query).attention
        assert attention.shape == found.patches.shape[:2]
        assert (attention > 0).all()
        assert (attention.sum(dim=1) <= 1 + 1e-5).all()
    if not teacher.queries:
        with pytest.raises(ValueError, match="must have attention over patches"):
            teacher(given, "mean")
    assert teacher.name == source
    return teacher


def tokens_of(found) -> torch.Tensor:
    return torch.cat([found.prefix, found.patches], dim=1)


def test_a_file_of_the_authors(tmp_path):
    encoder = shaken(replace(STUDENT, width=96, heads=3).build())
    torch.save({"model": encoder.state_dict()}, tmp_path / "mae.pth")
    teacher = teacher_of(str(tmp_path / "mae.pth"))
    *_, last = encoder.each_block(standardised(images(), IMAGENET_MEAN, IMAGENET_STD) * 0.3 + 0.5)
    torch.testing.assert_close(teacher(images()).patches, last.patches.detach(), rtol=1e-4, atol=1e-4)


def test_plain_timm_becomes_our_encoder(tmp_path):
    model = shaken(timm.create_model("test_vit", num_classes=0))
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    student = replace(STUDENT, image_size=(160, 160), patch_size=16)
    teacher = teacher_of(f"timm:test_vit@{tmp_path / 'weights.safetensors'}", student, output="norm")
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    with torch.no_grad():
        expected = model.forward_features(standardised(images(160), mean, std))
    torch.testing.assert_close(tokens_of(teacher(images(160))), expected, rtol=1e-4, atol=1e-4)
    small = teacher_of(f"timm:test_vit@{tmp_path / 'weights.safetensors'}")  # it sees 64 pixels
    assert small.image_size == (64, 64)


def test_wrapped_timm(tmp_path):
    """Layer scales and registers without a class token; its blocks and attention are those that timm computes."""
    model = shaken(timm.create_model("test_vit2", num_classes=0))
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    source, student = f"timm:test_vit2@{tmp_path / 'weights.safetensors'}", replace(STUDENT, image_size=(16, 16))
    teacher = teacher_of(source, student)
    assert teacher.image_size == (64, 64)
    own = replace(STUDENT, image_size=(64, 64), patch_size=16)
    given = images(64)
    teacher = teacher_of(source, own)
    model.set_input_size(img_size=(64, 64))
    seen: list[torch.Tensor] = []
    model.blocks[-1].attn.fused_attn = False
    model.blocks[-1].attn.attn_drop.register_forward_hook(lambda _m, _i, weights: seen.append(weights))
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    with torch.no_grad():
        blocks = model.forward_intermediates(
            standardised(given, mean, std), norm=False, output_fmt="NLC", return_prefix_tokens=True
        )[1]
    last, prefix = blocks[-1]
    torch.testing.assert_close(teacher(given).patches, last, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(teacher(given).prefix, prefix, rtol=1e-4, atol=1e-5)
    full = seen[0].mean(dim=1)
    expected = full[:, prefix.shape[1] :, prefix.shape[1] :].mean(dim=1)
    torch.testing.assert_close(teacher(given, "mean").attention, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="It has no class token"):
        teacher(given, "class")
    averaged = TeacherConfig(source, blocks=2).build(own.build())(given).patches
    each = [nn.functional.layer_norm(block[0], block[0].shape[-1:]) for block in blocks[-2:]]
    torch.testing.assert_close(averaged, (each[0] + each[1]) / 2, rtol=1e-3, atol=1e-4)


def test_a_transformer_of_another_family_has_no_attention(tmp_path):
    model = shaken(timm.create_model("beit_base_patch16_224", embed_dim=32, depth=2, num_heads=2, num_classes=0))
    from pantomim.formats.timm import TimmEncoder

    encoder = TimmEncoder(model, "timm:beit", (224, 224), IMAGENET_MEAN, IMAGENET_STD, lambda: model)
    assert (encoder.ends, encoder.num_blocks, encoder.has_attention) == (("block", "norm"), 2, False)
    teacher = EncoderTeacher(encoder, "timm:beit", output="norm")
    with torch.no_grad():
        expected = model.forward_features(standardised(images(224), IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(tokens_of(teacher(images(224))), expected, rtol=1e-4, atol=1e-4)


def test_a_convolutional_network_has_one_end(tmp_path):
    model = shaken(timm.create_model("test_resnet", num_classes=0))
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    source = f"timm:test_resnet@{tmp_path / 'weights.safetensors'}"
    teacher = teacher_of(source, output="norm")
    assert teacher.queries == ()
    assert teacher.image_size == (128, 128)
    with pytest.raises(ValueError, match="output must be norm for timm:test_resnet"):
        TeacherConfig(source).build(STUDENT.build())


def clip_weights(width: int = 128, quick: bool = True) -> tuple[dict[str, torch.Tensor], nn.Module]:
    torch.manual_seed(0)
    tower = open_clip.transformer.VisionTransformer(
        image_size=16,
        patch_size=4,
        width=width,
        layers=2,
        heads=width // 64,
        mlp_ratio=2,
        output_dim=24,
        act_layer=open_clip.transformer.QuickGELU if quick else nn.GELU,
        output_tokens=True,
    )
    return shaken(tower).state_dict(), tower


def test_openai_weights_by_name(tmp_path):
    weights, tower = clip_weights()
    torch.save({f"visual.{name}": tensor for name, tensor in weights.items()}, tmp_path / "clip.pt")
    teacher = teacher_of(f"clip:{tmp_path / 'clip.pt'}", output="projection")
    with torch.no_grad():
        embedding, _ = tower(standardised(images(), CLIP_MEAN, CLIP_STD))
    torch.testing.assert_close(teacher(images()).prefix[:, 0], embedding, rtol=1e-4, atol=1e-4)
    assert (teacher.width, teacher.queries) == (24, ("class", "mean"))
    assert teacher_of(f"clip:{tmp_path / 'clip.pt'}").width == 128
    patch14 = teacher_of(f"clip:{tmp_path / 'clip.pt'}", replace(STUDENT, image_size=(24, 24), patch_size=8))
    assert patch14.image_size == (12, 12)
    assert load_encoder(f"clip:{tmp_path / 'clip.pt'}").has_class_token


def scripted(weights: dict[str, torch.Tensor]) -> nn.Module:
    """A module with these parameters, whose program does not matter."""
    root = nn.Module()
    for name, tensor in weights.items():
        module, *_, last = root, *name.split(".")
        for part in name.split(".")[:-1]:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, nn.Parameter(tensor.clone(), requires_grad=False))
    return root


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:FutureWarning")
def test_openai_archive(tmp_path):
    weights, _ = clip_weights()
    named = {f"visual.{name}": tensor.half() for name, tensor in weights.items()}
    torch.jit.save(torch.jit.script(scripted(named | {"logit_scale": torch.ones(3)})), tmp_path / "clip.pt")
    torch.save(named, tmp_path / "named.pt")
    archive = teacher_of(f"clip:{tmp_path / 'clip.pt'}", output="norm")
    plain = teacher_of(f"clip:{tmp_path / 'named.pt'}", output="norm")
    torch.testing.assert_close(archive(images()).patches, plain(images()).patches, rtol=0, atol=0)


@pytest.mark.parametrize("activation", ["quick", "exact"])
def test_open_clip_checkpoint(tmp_path, activation):
    config = {
        "embed_dim": 24,
        "quick_gelu": activation == "quick",
        "vision_cfg": {"image_size": 16, "layers": 2, "width": 128, "patch_size": 4, "mlp_ratio": 2.0},
        "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1},
    }
    name = f"tiny-{activation}"
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    model = shaken(open_clip.create_model(name))
    weights = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": weights}, tmp_path / "epoch_3.pt")
    teacher = teacher_of(f"open_clip:{name}@{tmp_path / 'epoch_3.pt'}", output="projection")
    assert load_encoder(teacher.name).interpolation == "bicubic"
    with torch.no_grad():
        expected = model.encode_image(standardised(images(), CLIP_MEAN, CLIP_STD))
    torch.testing.assert_close(teacher(images()).prefix[:, 0], expected, rtol=1e-4, atol=1e-4)
    del weights["module.visual.proj"]
    torch.save({"state_dict": weights}, tmp_path / "cut.pt")
    with pytest.raises(ValueError, match="missing: proj"):
        TeacherConfig(f"open_clip:{name}@{tmp_path / 'cut.pt'}").build(STUDENT.build())


SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
HF = {
    "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**SIZES, image_size=16, patch_size=4)),
    "dinov2": lambda: transformers.Dinov2Model(
        transformers.Dinov2Config(**SIZES, image_size=16, patch_size=4, mlp_ratio=2)
    ),
    "mae": lambda: transformers.ViTMAEModel(transformers.ViTMAEConfig(**SIZES, image_size=16, patch_size=4)),
    "clip": lambda: transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(**SIZES, image_size=16, patch_size=4, projection_dim=24)
    ),
}


def hf_folder(path, kind, *, processor=True):
    torch.manual_seed(0)
    model = shaken(HF[kind]())
    model.save_pretrained(path)
    if processor:
        settings = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "image_processor_type": "ViTImageProcessor"}
        (path / "preprocessor_config.json").write_text(json.dumps(settings))
    return model


@pytest.mark.parametrize("kind", list(HF))
def test_a_folder_of_transformers(tmp_path, kind):
    model = hf_folder(tmp_path, kind)
    model.set_attn_implementation("eager")
    teacher, extra = teacher_of(f"hf:{tmp_path}"), {}
    if kind == "mae":  # nothing is masked, and the order of the noise is that of the patches
        model.config.mask_ratio = 0.0
        extra = {"noise": torch.linspace(0, 1, 16).expand(2, -1)}
    assert teacher.queries == ("class", "mean")
    asked = {"output_attentions": True, "output_hidden_states": True}
    with torch.no_grad():
        output = model(standardised(images(), CLIP_MEAN, CLIP_STD), **asked, **extra)
    full = output.attentions[-1].mean(dim=1)
    torch.testing.assert_close(teacher(images(), "class").attention, full[:, 0, 1:], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(teacher(images(), "mean").attention, full[:, 1:, 1:].mean(dim=1), rtol=1e-4, atol=1e-6)
    mean = TeacherConfig(f"hf:{tmp_path}", blocks=2).build(STUDENT.build())(images())
    normed = TeacherConfig(f"hf:{tmp_path}", output="norm").build(STUDENT.build())(images())
    second = nn.functional.layer_norm(output.hidden_states[-2], (32,))
    third = nn.functional.layer_norm(tokens_of(teacher(images())), (32,))
    torch.testing.assert_close(tokens_of(mean), (second + third) / 2, rtol=1e-3, atol=1e-4)
    if kind == "clip":
        projected = TeacherConfig(f"hf:{tmp_path}", output="projection").build(STUDENT.build())(images())
        torch.testing.assert_close(projected.prefix[:, 0], output.image_embeds, rtol=1e-4, atol=1e-4)
    else:
        torch.testing.assert_close(tokens_of(normed), output.last_hidden_state, rtol=1e-4, atol=1e-4)


def test_mae_of_transformers_is_our_encoder_with_the_same_weights(tmp_path):
    """All patches, in their order, with their own positions, though the library masks three quarters of them."""
    theirs = hf_folder(tmp_path, "mae").state_dict()
    ours = replace(STUDENT, width=32, depth=3, heads=2, mlp_ratio=1.5).build().eval()
    names = {
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "embeddings.": "",
        "layers.": "blocks.",
        "attention.o_proj": "attn.proj",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "layernorm.": "norm.",
    }
    weights = {}
    for name, tensor in theirs.items():
        for their_name, our_name in names.items():
            name = name.replace(their_name, our_name)
        weights[name] = tensor
    for block in range(3):
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"blocks.{block}.attention.{part}_proj.{kind}") for part in "qkv"]
            weights[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
    ours.load_state_dict(weights)
    *_, last = ours.each_block(standardised(images(), CLIP_MEAN, CLIP_STD) * 0.3 + 0.5)
    teacher = teacher_of(f"hf:{tmp_path}")
    torch.testing.assert_close(teacher(images()).patches, last.patches.detach(), rtol=1e-4, atol=1e-4)


def test_transformers_at_another_size(tmp_path):
    hf_folder(tmp_path, "dinov2")
    teacher = teacher_of(f"hf:{tmp_path}", replace(STUDENT, image_size=(24, 48), patch_size=8), statistics="student")
    assert teacher.image_size == (12, 24)


class Call:
    """Unpickled, it would write a file."""

    def __reduce__(self):
        return exec, ("open('executed', 'w')",)


@pytest.mark.parametrize("kind", ["code", "pickle", "torch file called safetensors"])
def test_transformers_run_nothing_of_a_folder(tmp_path, monkeypatch, kind):
    hf_folder(tmp_path, "vit")
    monkeypatch.chdir(tmp_path)
    if kind == "code":
        config = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "code.py").write_text("open('executed', 'w')")
    elif kind == "pickle":
        (tmp_path / "model.safetensors").unlink()
        torch.save({"a": Call()}, tmp_path / "pytorch_model.bin")
    else:
        torch.save({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    expected = "SafetensorError" if kind.startswith("torch") else "it would have to run code to be read"
    with pytest.raises(ValueError, match=f"must be a folder with a model of transformers.*{expected}") as error:
        TeacherConfig(f"hf:{tmp_path}").build(STUDENT.build())
    assert "weights_only" not in str(error.value)
    assert "trust_remote_code" not in str(error.value)
    assert not (tmp_path / "executed").exists()


def test_transformers_without_statistics(tmp_path):
    hf_folder(tmp_path, "vit", processor=False)
    with pytest.raises(ValueError, match="must have a preprocessor_config"):
        TeacherConfig(f"hf:{tmp_path}").build(STUDENT.build())


def test_a_tokenizer_trained_here(tmp_path):
    torch.manual_seed(0)
    networks = DVAENetworks(DVAESizes(width=8, vocabulary=16, code_width=4, blocks=1, stride=4)).eval()
    save_tokenizer(tmp_path, networks, scale={}, recipe="tiny")
    teacher = teacher_of(f"tokenizer:{tmp_path}")
    features: list[torch.Tensor] = []
    networks.encoder.blocks[-1].register_forward_pre_hook(lambda _module, given: features.append(given[0]))
    with torch.no_grad():
        networks.encoder(map_pixels(images()))
    assert (teacher.width, teacher(images()).prefix.shape[1]) == (32, 0)
    torch.testing.assert_close(teacher(images()).patches, features[0].flatten(2).mT, rtol=0, atol=0)
    assert teacher_of(f"tokenizer:{tmp_path}", replace(STUDENT, patch_size=2)).image_size == (32, 32)
    with pytest.raises(ValueError, match="leave output and blocks"):
        TeacherConfig(f"tokenizer:{tmp_path}", output="norm").build(STUDENT.build())


def published(module: nn.Module, top: str = "") -> nn.Module:
    """The same modules under the classes of DALL-E's authors, for whole-module pickles."""
    names = {"DVAEEncoder": "encoder.Encoder", "ResidualBlock": "encoder.EncoderBlock", "Conv2d": "utils.Conv2d"}
    if type(module).__name__ in names:
        where, name = names[type(module).__name__].split(".")
        kind = getattr(sys.modules[f"dall_e.{where}"], name)
    elif isinstance(module, nn.Sequential):
        kind = nn.Sequential
    else:
        return module
    twin = kind()
    for name, parameter in module.named_parameters(recurse=False):
        twin.register_parameter(name, parameter)
    for name, part in module.named_children():
        twin.add_module(name, published(part))
    return twin


def test_the_published_dalle_encoder(tmp_path, monkeypatch):
    for where, names in {"encoder": ("Encoder", "EncoderBlock"), "utils": ("Conv2d",)}.items():
        module = ModuleType(f"dall_e.{where}")
        for name in names:
            setattr(module, name, type(name, (nn.Module,), {"__module__": f"dall_e.{where}"}))
        monkeypatch.setitem(sys.modules, f"dall_e.{where}", module)
    monkeypatch.setitem(sys.modules, "dall_e", ModuleType("dall_e"))
    torch.manual_seed(0)
    encoder = DVAEEncoder(DVAESizes(width=8, vocabulary=16, blocks=1))
    torch.save(published(encoder), tmp_path / "encoder.pkl")
    teacher = teacher_of(f"dalle:{tmp_path / 'encoder.pkl'}")
    assert teacher.image_size == (32, 32)
    mapped = map_pixels(nn.functional.interpolate(images(), (32, 32), mode="bicubic", antialias=True).clamp(0, 1))
    expected = encoder.features(mapped).detach().flatten(2).mT
    torch.testing.assert_close(teacher(images()).patches, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("clip:/nowhere/clip.pt", "clip.pt must be a file of weights; got nothing there"),
        ("timm:test_vit@/nowhere/w.safetensors", "must be a file of weights; got nothing there"),
        ("open_clip:ViT-B-16@/nowhere/w.pt", "must be a file of weights; got nothing there"),
        ("open_clip:ViT-B-61:openai", "Did you mean ViT-B-16"),
        ("open_clip:ViT-B-16", "no tag of ViT-B-16. Tags: openai"),
        ("tokenizer:/nowhere", "Ways to get one: `pantomim tokenizer train"),
        ("tokenizer:random-projection", "must be a tokenizer with features"),
        ("dalle:/nowhere.pkl", "nothing there"),
    ],
)
def test_what_is_not_there(source, message):
    with pytest.raises(ValueError, match=message):
        TeacherConfig(source).build(STUDENT.build())


@pytest.mark.parametrize(
    ("module", "source", "extra"),
    [("open_clip", "open_clip:ViT-B-16:openai", "open_clip"), ("transformers", "hf:some/vit", "hf")],
)
def test_a_library_that_is_not_installed(monkeypatch, module, source, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"pip install 'pantomim\[{extra}\]'"):
        TeacherConfig(source).build(STUDENT.build())


def test_no_network(monkeypatch):
    def offline(*given, **settings):
        raise OSError("no route to host")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", offline)
    with pytest.raises(ConnectionError, match="check the name, connect to the network once, or set HF_"):
        TeacherConfig("hf:facebook/dinov2-base").build(STUDENT.build())
    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(ConnectionError, match="give a file: open_clip:ViT-B-16@FILE"):
        TeacherConfig("open_clip:ViT-B-16:openai").build(STUDENT.build())


def test_missing_weights_are_not_made_up(tmp_path):
    model = hf_folder(tmp_path, "vit")
    weights = {name: tensor for name, tensor in model.state_dict().items() if "layers.1.mlp.fc1" not in name}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing or mis-shaped: .*layers\.1\.mlp\.fc1"):
        TeacherConfig(f"hf:{tmp_path}").build(STUDENT.build())


def test_a_damaged_archive(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "clip.pt", "w") as archive:
        archive.writestr("clip/constants.pkl", b"")
        archive.writestr("clip/data.pkl", b"cos\nsystem\n(S'echo'\ntR.")
    with pytest.raises(ValueError, match=r"a pickle that calls os\.system. It was not executed"):
        TeacherConfig(f"clip:{tmp_path / 'clip.pt'}").build(STUDENT.build())


def test_untrained_twins_and_other_sizes(tmp_path):
    hf_folder(tmp_path, "vit")
    weights, _ = clip_weights()
    torch.save(weights, tmp_path / "clip.pt")
    for source in (f"hf:{tmp_path}", f"clip:{tmp_path / 'clip.pt'}"):
        encoder = load_encoder(source)
        twin = encoder.untrained()
        features, fresh = encoder(images()), twin(images())
        assert features.patches.shape == fresh.patches.shape
        assert not torch.allclose(features.patches, fresh.patches)
