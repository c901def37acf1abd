"""CAE and BEiT of other code bases: made files under their names, against a forward pass written out beside them."""

import pickle
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pantomim.cli import main
from pantomim.core.mask import Mask
from pantomim.formats import load_encoder
from pantomim.formats.cae import load_cae_file
from pantomim.formats.foreign import Given
from pantomim.formats.mmpretrain import load_mmpretrain
from pantomim.formats.paddle import read_paddle
from pantomim.nn.position import sincos_2d_rows_first

WIDTH, HEADS, HIDDEN, SIDE, PATCH, VOCABULARY = 16, 2, 24, 3, 4, 7
GIVEN = Given(heads=HEADS, decoder_heads=HEADS)
MM = {
    "encoder": "backbone.",
    "blocks": "layers.",
    "norm1": "ln1",
    "norm2": "ln2",
    "fc1": "ffn.layers.0.0",
    "fc2": "ffn.layers.1",
    "patch": "backbone.patch_embed.projection",
    "norm": "backbone.ln1",
    "regressors": "neck.regressors.",
    "cross_fc1": "ffn.layers.0.0",
    "cross_fc2": "ffn.layers.1",
    "decoders": "neck.decoders.",
    "norm_regressor": "neck.norm_regressor",
    "norm_decoder": "neck.norm_decoder",
    "head": "neck.head",
    "mask_token": "neck.mask_token",
}
PADDLE = {
    "encoder": "encoder.",
    "blocks": "blocks.",
    "norm1": "norm1",
    "norm2": "norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "patch": "encoder.patch_embed.proj",
    "norm": "encoder.norm",
    "regressors": "regressor_and_decoder.blocks.",
    "cross_fc1": "mlp_cross.fc1",
    "cross_fc2": "mlp_cross.fc2",
    "decoders": "regressor_and_decoder.self_att_blocks.",
    "norm_regressor": "regressor_and_decoder.norm",
    "norm_decoder": "regressor_and_decoder.norm2",
    "head": "regressor_and_decoder.head",
    "mask_token": "mask_token",
}


def made(names, turned=False):
    """Random weights under a code base's names; `turned`: linear layers as (in, out)."""
    generator, found = torch.Generator().manual_seed(0), {}

    def put(name, *shape):
        found[name] = torch.randn(*shape, generator=generator) * 0.3

    def linear(name, inward, outward, bias=True):
        put(f"{name}.weight", *((inward, outward) if turned else (outward, inward)))
        if bias:
            put(f"{name}.bias", outward)

    def norm(name):
        put(f"{name}.weight", WIDTH)
        put(f"{name}.bias", WIDTH)

    def block(name):
        norm(f"{name}.{names['norm1']}")
        norm(f"{name}.{names['norm2']}")
        linear(f"{name}.attn.qkv", WIDTH, 3 * WIDTH, bias=False)
        for part in ("q_bias", "v_bias"):
            put(f"{name}.attn.{part}", WIDTH)
        linear(f"{name}.attn.proj", WIDTH, WIDTH)
        linear(f"{name}.{names['fc1']}", WIDTH, HIDDEN)
        linear(f"{name}.{names['fc2']}", HIDDEN, WIDTH)
        put(f"{name}.gamma_1", WIDTH)
        put(f"{name}.gamma_2", WIDTH)

    put(f"{names['encoder']}cls_token", 1, 1, WIDTH)
    found[f"{names['encoder']}pos_embed"] = sincos_2d_rows_first(WIDTH, (SIDE, SIDE), 1)[None].float()
    put(f"{names['patch']}.weight", WIDTH, 3, PATCH, PATCH)
    put(f"{names['patch']}.bias", WIDTH)
    for number in range(2):
        block(f"{names['encoder']}{names['blocks']}{number}")
    norm(names["norm"])
    for number in range(2):
        name = f"{names['regressors']}{number}"
        for part in ("norm1_q_cross", "norm1_k_cross", "norm1_v_cross", "norm2_cross"):
            norm(f"{name}.{part}")
        for part in ("q", "k", "v"):
            linear(f"{name}.cross_attn.{part}", WIDTH, WIDTH, bias=False)
        for part in ("q_bias", "v_bias"):
            put(f"{name}.cross_attn.{part}", WIDTH)
        linear(f"{name}.cross_attn.proj", WIDTH, WIDTH)
        linear(f"{name}.{names['cross_fc1']}", WIDTH, HIDDEN)
        linear(f"{name}.{names['cross_fc2']}", HIDDEN, WIDTH)
        put(f"{name}.gamma_1_cross", WIDTH)
        put(f"{name}.gamma_2_cross", WIDTH)
    block(f"{names['decoders']}0")
    norm(names["norm_regressor"])
    norm(names["norm_decoder"])
    linear(names["head"], WIDTH, VOCABULARY)
    put(names["mask_token"], 1, 1, WIDTH)
    return found


class Written:
    """The forward pass of CAE on one image, with plain matrix products."""

    def __init__(self, weights, names, turned):
        self.weights, self.names, self.turned = weights, names, turned

    def linear(self, name, tokens, bias=None):
        weight = self.weights[f"{name}.weight"]
        bias = self.weights.get(f"{name}.bias") if bias is None else bias
        product = tokens @ (weight if self.turned else weight.T)
        return product if bias is None else product + bias

    def norm(self, name, tokens):
        return F.layer_norm(tokens, (WIDTH,), self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 1e-6)

    def attend(self, query, key, value):
        split = [part.view(len(part), HEADS, -1).transpose(0, 1) for part in (query, key, value)]
        shares = (split[0] @ split[1].mT / (WIDTH // HEADS) ** 0.5).softmax(dim=-1)
        return (shares @ split[2]).transpose(0, 1).reshape(len(query), WIDTH)

    def block(self, name, tokens):
        weights, names = self.weights, self.names
        normed = self.norm(f"{name}.{names['norm1']}", tokens)
        zeros = torch.zeros(WIDTH)
        bias = torch.cat([weights[f"{name}.attn.q_bias"], zeros, weights[f"{name}.attn.v_bias"]])
        mixed = self.attend(*self.linear(f"{name}.attn.qkv", normed, bias).chunk(3, dim=-1))
        tokens = tokens + weights[f"{name}.gamma_1"] * self.linear(f"{name}.attn.proj", mixed)
        hidden = F.gelu(self.linear(f"{name}.{names['fc1']}", self.norm(f"{name}.{names['norm2']}", tokens)))
        return tokens + weights[f"{name}.gamma_2"] * self.linear(f"{name}.{names['fc2']}", hidden)

    def encode(self, pixels, ids):
        weights, names = self.weights, self.names
        kernel = (weights[f"{names['patch']}.weight"], weights[f"{names['patch']}.bias"])
        table = weights[f"{names['encoder']}pos_embed"][0]
        patches = F.conv2d(pixels[None], *kernel, stride=PATCH)[0].flatten(1).T + table[1:]
        tokens = torch.cat([weights[f"{names['encoder']}cls_token"][0] + table[:1], patches[ids]])
        for number in range(2):
            tokens = self.block(f"{names['encoder']}{names['blocks']}{number}", tokens)
        return self.norm(names["norm"], tokens)[1:]

    def regress(self, visible, seen, hidden):
        weights, names = self.weights, self.names
        table = weights[f"{names['encoder']}pos_embed"][0, 1:]
        queries = weights[names["mask_token"]][0].expand(len(hidden), -1)
        for number in range(2):
            name = f"{names['regressors']}{number}"
            values = torch.cat([visible, queries])
            q = self.norm(f"{name}.norm1_q_cross", queries + table[hidden])
            k = self.norm(f"{name}.norm1_k_cross", values + torch.cat([table[seen], table[hidden]]))
            v = self.norm(f"{name}.norm1_v_cross", values)
            cross = f"{name}.cross_attn"
            mixed = self.attend(
                self.linear(f"{cross}.q", q, weights[f"{cross}.q_bias"]),
                self.linear(f"{cross}.k", k),
                self.linear(f"{cross}.v", v, weights[f"{cross}.v_bias"]),
            )
            queries = queries + weights[f"{name}.gamma_1_cross"] * self.linear(f"{cross}.proj", mixed)
            queries = self.norm(f"{name}.norm2_cross", queries)
            inner = F.gelu(self.linear(f"{name}.{names['cross_fc1']}", queries))
            queries = queries + weights[f"{name}.gamma_2_cross"] * self.linear(f"{name}.{names['cross_fc2']}", inner)
        return self.norm(names["norm_regressor"], queries)

    def decode(self, latents, hidden):
        table = self.weights[f"{self.names['encoder']}pos_embed"][0, 1:]
        tokens = self.block(f"{self.names['decoders']}0", latents + table[hidden])
        return self.linear(self.names["head"], self.norm(self.names["norm_decoder"], tokens))


def write_mm(path, weights):
    beside = {
        "teacher.cls_token": weights["backbone.cls_token"],
        "target_generator.blocks.input.b": torch.zeros(3),
        "data_preprocessor.mean": torch.tensor([123.675, 116.28, 103.53]).view(-1, 1, 1),
        "data_preprocessor.std": torch.tensor([58.395, 57.12, 57.375]).view(-1, 1, 1),
    }
    torch.save({"state_dict": OrderedDict(weights | beside), "meta": {"epoch": 1}}, path)


def write_paddle(path, weights, protocol=4, paired=True):
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    for name in [name for name in arrays if name.startswith("encoder.")]:
        arrays[name.replace("encoder.", "teacher_network.", 1)] = arrays[name]
    held = {name: ("linear_0.w_0", array) if paired else array for name, array in arrays.items()}
    path.write_bytes(pickle.dumps({"model": held, "epoch": 3}, protocol=protocol))


@pytest.mark.parametrize("kind", ["mmpretrain", "paddle", "paddle, older"])
def test_a_made_file_of_cae_computes_what_its_own_code_base_would(tmp_path, kind):
    names, turned = (MM, False) if kind == "mmpretrain" else (PADDLE, True)
    weights = made(names, turned)
    path = tmp_path / ("file.pth" if kind == "mmpretrain" else "file.pdparams")
    if kind == "mmpretrain":
        write_mm(path, weights)
        found = load_mmpretrain(path, GIVEN)
    else:
        newer = kind == "paddle"
        write_paddle(path, weights, protocol=4 if newer else 2, paired=newer)
        found = load_cae_file(path, GIVEN)
    assert found.layout.project == "cae"
    assert "names of" in found.notes[0]
    written = Written(weights, names, turned)
    images = torch.rand(1, 3, SIDE * PATCH, SIDE * PATCH)
    pixels = (images[0] - torch.tensor(found.encoder.config.mean).view(-1, 1, 1)) / torch.tensor(
        found.encoder.config.std
    ).view(-1, 1, 1)
    masked = torch.tensor([[False, True, True, False, True, False, True, False, False]])
    mask = Mask.from_scores(masked.float(), 4)
    seen, hidden = mask.ids_keep[0], mask.ids_mask[0]
    visible = written.encode(pixels, seen)
    assert torch.allclose(found.encoder(images, mask.ids_keep).patches[0], visible, atol=1e-5)

    from pantomim.formats.cae import recognise_cae
    from pantomim.formats.renamed import MM_CAE, PADDLE_CAE, renamed

    plain = {n: t.T if turned and n.endswith(".weight") and t.dim() == 2 else t for n, t in weights.items()}
    parts = recognise_cae(renamed(plain, PADDLE_CAE if turned else MM_CAE), "made", GIVEN)
    latents = parts.regressor(visible[None], mask)
    assert torch.allclose(latents[0], written.regress(visible, seen, hidden), atol=1e-5)
    scores = parts.decoder(latents, mask.ids_mask)
    assert torch.allclose(scores[0], written.decode(latents[0], hidden), atol=1e-4)
    for name, tensor in found.predictor.items():
        part, _, inner = name.partition(".")
        assert torch.equal(tensor, parts.modules[part].state_dict()[inner]), name


def test_the_command_reads_paddle_files(tmp_path):
    weights = made(PADDLE, turned=True)
    write_paddle(tmp_path / "file.pdparams", weights)
    given = ["--heads", "2", "--decoder-heads", "2", "--out", str(tmp_path / "out")]
    main(["import", str(tmp_path / "file.pdparams"), "--format", "cae", *given])
    qkv = load_encoder(tmp_path / "out").blocks[0].attn.qkv.weight
    assert torch.equal(qkv, weights["encoder.blocks.0.attn.qkv.weight"].T)
    with pytest.raises(ValueError, match="heads must be given for width 16"):  # recognised, without --heads
        load_encoder(tmp_path / "file.pdparams")


def test_what_is_beside_the_network_is_told_and_left_out(tmp_path, capsys):
    write_mm(tmp_path / "file.pth", made(MM))
    given = ["--heads", "2", "--decoder-heads", "2", "--out", str(tmp_path / "out")]
    main(["import", str(tmp_path / "file.pth"), "--format", "mmpretrain", *given])
    words = capsys.readouterr().out
    assert "target_generator.blocks.input.b" in words
    assert "names of mmpretrain" in words
    assert load_encoder(tmp_path / "out").mean.tolist() == pytest.approx([0.485, 0.456, 0.406])


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "table"])
def test_every_name_and_shape_counts(tmp_path, change):
    weights = made(MM)
    if change == "missing":
        del weights["neck.regressors.1.cross_attn.k.weight"]
        said = "missing: pretext_neck.regressor_blocks.1.cross_attn.k.weight"
    elif change == "unexpected":
        weights["neck.extra.weight"] = torch.zeros(2)
        said = "unexpected: neck.extra.weight"
    elif change == "shape":
        weights["neck.norm_decoder.weight"] = torch.zeros(3)
        said = r"mis-shaped: pretext_neck.norm2.weight \(3,\)"
    else:
        weights["backbone.pos_embed"] = torch.randn(1, SIDE * SIDE + 1, WIDTH)
        said = "must be the sine-cosine table of a 3 x 3 grid, rows first"
    write_mm(tmp_path / "file.pth", weights)
    with pytest.raises(ValueError, match=said):
        load_mmpretrain(tmp_path / "file.pth", GIVEN)


def beit_weights(classifier):
    names = made(MM)
    found = {name: tensor for name, tensor in names.items() if name.startswith("backbone.") and "pos_embed" not in name}
    rows = (2 * SIDE - 1) ** 2 + 3
    if classifier:
        for part in ("weight", "bias"):
            found[f"backbone.ln2.{part}"] = found.pop(f"backbone.ln1.{part}")
        for number in range(2):
            found[f"backbone.layers.{number}.attn.relative_position_bias_table"] = torch.randn(rows, HEADS)
        found |= {"head.fc.weight": torch.randn(5, WIDTH), "head.fc.bias": torch.randn(5)}
        return found
    found["backbone.rel_pos_bias.relative_position_bias_table"] = torch.randn(rows, HEADS)
    found["backbone.mask_token"] = torch.randn(1, 1, WIDTH)
    return found | {
        "head.cls_head.weight": torch.randn(VOCABULARY, WIDTH),
        "head.cls_head.bias": torch.randn(VOCABULARY),
    }


def test_beit_of_mmpretrain(tmp_path):
    weights = beit_weights(classifier=False)
    write_mm(tmp_path / "file.pth", weights)
    found = load_mmpretrain(tmp_path / "file.pth", GIVEN)
    assert (found.layout.project, found.kind) == ("beit", "encoder")
    assert set(found.predictor) == {"mask_token", "head.weight", "head.bias"}
    assert torch.equal(found.encoder.blocks[1].mlp.fc2.weight, weights["backbone.layers.1.ffn.layers.1.weight"])
    assert torch.equal(found.encoder.norm.weight, weights["backbone.ln1.weight"])
    del weights["backbone.layers.0.ln2.bias"]
    write_mm(tmp_path / "file.pth", weights)
    with pytest.raises(ValueError, match=r"missing: blocks\.0\.norm2\.bias"):
        load_mmpretrain(tmp_path / "file.pth", GIVEN)


@pytest.mark.parametrize("project", ["beit", "cae"])
def test_classifiers_of_mmpretrain(tmp_path, project):
    weights = beit_weights(classifier=True)
    if project == "cae":
        weights["backbone.pos_embed"] = sincos_2d_rows_first(WIDTH, (SIDE, SIDE), 1)[None].float()
    write_mm(tmp_path / "file.pth", weights)
    found = load_mmpretrain(tmp_path / "file.pth", GIVEN)
    assert (found.layout.project, found.kind) == (project, "classifier")
    assert torch.equal(found.classifier.fc_norm.weight, weights["backbone.ln2.weight"])


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_paddle_files_execute_nothing(tmp_path, capsys):
    path = tmp_path / "file.pdparams"
    path.write_bytes(pickle.dumps({"weight": Evil()}))
    with pytest.raises(ValueError, match=r"a pickle that calls builtins\.print\. It was not executed"):
        read_paddle(path)
    assert not capsys.readouterr().out
    write = partial(pickle.dumps, protocol=4)
    for content, said in (
        (write([1, 2]), "must map names to arrays; got list"),
        (write({"a": "text"}), "got str under a"),
        (write({"a": np.array([None, "x"], dtype=object)}), "arrays of numbers; got an array of O8 under a"),
        (write({"a": np.zeros(3)})[:-9], "must be a whole .pdparams file"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=said):
            read_paddle(path)
    with pytest.raises(ValueError, match="nothing there"):
        read_paddle(tmp_path / "none.pdparams")


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3).T, np.arange(4, dtype=">f4"), np.float32([[1, 2]])])
def test_paddle_arrays_keep_their_values(tmp_path, array):
    path = tmp_path / "file.pdparams"
    path.write_bytes(pickle.dumps({"a": array, "StructuredToParameterName@@": {"a": "b"}}, protocol=4))
    found = read_paddle(path)
    assert list(found) == ["a"]
    assert np.array_equal(found["a"].numpy(), array)
