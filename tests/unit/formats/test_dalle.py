"""Files in the published layout, made here: whole modules, pickled under the authors' class names."""

import contextlib
import sys
from collections import OrderedDict
from types import ModuleType

import pytest
import torch
from foreign_files import Bomb
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from pantomim.formats.dalle import load_dalle
from pantomim.nn.dvae import DVAEDecoder, DVAEEncoder
from pantomim.tokenizers import load_tokenizer

LEGACY = {"_use_new_zipfile_serialization": False}
WIDTH, CODE_WIDTH, VOCABULARY, BLOCKS = 8, 6, 16, 2


class Conv2d(nn.Module):
    def __init__(self, n_in, n_out, kw):
        super().__init__()
        self.n_in, self.n_out, self.kw, self.use_float16, self.device = n_in, n_out, kw, True, torch.device("cpu")
        self.w = nn.Parameter(torch.randn(n_out, n_in, kw, kw) / (n_in * kw**2) ** 0.5)
        self.b = nn.Parameter(torch.randn(n_out))

    def forward(self, x):
        return F.conv2d(x, self.w, self.b, padding=(self.kw - 1) // 2)


class EncoderBlock(nn.Module):
    kernels = (3, 3, 3, 1)

    def __init__(self, n_in, n_out):
        super().__init__()
        self.n_in, self.n_out, self.post_gain, n = n_in, n_out, 1 / (4 * BLOCKS) ** 2, n_out // 4
        self.id_path = Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        widths = (n_in, n, n, n, n_out)
        convs = [Conv2d(widths[i], widths[i + 1], kernel) for i, kernel in enumerate(self.kernels)]
        layers = [pair for i, conv in enumerate(convs, 1) for pair in ((f"relu_{i}", nn.ReLU()), (f"conv_{i}", conv))]
        self.res_path = nn.Sequential(OrderedDict(layers))

    def forward(self, x):
        return self.id_path(x) + self.post_gain * self.res_path(x)


class DecoderBlock(EncoderBlock):
    kernels = (1, 3, 3, 3)


def groups(block, first, widths, between):
    found, width = [], first
    for number, out in enumerate(widths, 1):
        layers = [(f"block_{i + 1}", block(width if i == 0 else out, out)) for i in range(BLOCKS)]
        layers += [between] if number < len(widths) else []
        found.append((f"group_{number}", nn.Sequential(OrderedDict(layers))))
        width = out
    return found


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.n_hid, self.requires_grad, self.device = WIDTH, False, torch.device("cpu")
        output = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv2d(8 * WIDTH, VOCABULARY, 1)))
        middle = groups(EncoderBlock, WIDTH, [WIDTH, 2 * WIDTH, 4 * WIDTH, 8 * WIDTH], ("pool", nn.MaxPool2d(2)))
        self.blocks = nn.Sequential(OrderedDict([("input", Conv2d(3, WIDTH, 7)), *middle, ("output", output)]))

    def forward(self, x):
        return self.blocks(x)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        up = ("upsample", nn.Upsample(scale_factor=2, mode="nearest"))
        output = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv2d(WIDTH, 6, 1)))
        middle = groups(DecoderBlock, CODE_WIDTH, [8 * WIDTH, 4 * WIDTH, 2 * WIDTH, WIDTH], up)
        first = Conv2d(VOCABULARY, CODE_WIDTH, 1)
        self.blocks = nn.Sequential(OrderedDict([("input", first), *middle, ("output", output)]))

    def forward(self, x):
        return self.blocks(x)


class Other(nn.Module):
    pass


HOMES = {
    Encoder: "dall_e.encoder",
    EncoderBlock: "dall_e.encoder",
    Decoder: "dall_e.decoder",
    DecoderBlock: "dall_e.decoder",
    Conv2d: "dall_e.utils",
    Other: "dall_e.utils",
}


@contextlib.contextmanager
def published_names():
    """The classes above under the authors' names, as long as a file is written."""
    before = {cls: cls.__module__ for cls in HOMES}
    for cls, home in HOMES.items():
        cls.__module__ = home
        sys.modules.setdefault("dall_e", ModuleType("dall_e"))
        setattr(sys.modules.setdefault(home, ModuleType(home)), cls.__name__, cls)
    try:
        yield
    finally:
        for cls, home in before.items():
            cls.__module__ = home
        for name in ("dall_e", *HOMES.values()):
            sys.modules.pop(name, None)


@pytest.fixture(params=[{}, LEGACY], ids=["zip", "legacy"])
def write(tmp_path, request):
    def written(module, name="encoder.pkl"):
        # torch's oldest layout looks for the classes' source, which made-up modules have not, and says so
        with published_names(), pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *args, **kwargs: None)
            torch.save(module, tmp_path / name, **request.param)
        return tmp_path / name

    return written


def test_encoder(write):
    torch.manual_seed(0)
    official = Encoder()
    ours, images = load_dalle(DVAEEncoder, write(official)), torch.rand(2, 3, 16, 24)
    assert (ours.sizes.width, ours.sizes.vocabulary, ours.sizes.blocks, ours.sizes.stride) == (WIDTH, 16, 2, 8)
    assert torch.equal(ours(images), official(images))
    assert not ours.training
    assert not any(parameter.requires_grad for parameter in ours.parameters())


def test_decoder(write):
    torch.manual_seed(0)
    official = Decoder()
    ours, codes = load_dalle(DVAEDecoder, write(official, "decoder.pkl")), torch.rand(2, VOCABULARY, 2, 3)
    assert ours.sizes.code_width == CODE_WIDTH
    assert torch.equal(ours(codes), official(codes))


@pytest.mark.parametrize("wrapped", ["safetensors", "pth", "state_dict", "model", "legacy"])
def test_named_tensors(tmp_path, wrapped):
    official, path = Encoder(), tmp_path / f"encoder.{'safetensors' if wrapped == 'safetensors' else 'pth'}"
    weights = {name: tensor.contiguous() for name, tensor in official.state_dict().items()}
    if wrapped == "safetensors":
        save_file(weights, path)
    else:
        content = weights if wrapped in ("pth", "legacy") else {wrapped: weights}
        torch.save(content, path, **(LEGACY if wrapped == "legacy" else {}))
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(load_dalle(DVAEEncoder, path)(images), official(images))


def test_a_folder_or_a_file_as_tokenizer(write, tmp_path):
    torch.manual_seed(0)
    encoder, decoder, images = Encoder(), Decoder(), torch.rand(2, 3, 16, 16)
    path = write(encoder)
    assert load_tokenizer(f"dalle:{tmp_path}").decoder is None
    write(decoder, "decoder.pkl")
    alone, both = load_tokenizer(f"dalle:{path}"), load_tokenizer(f"dalle:{tmp_path}")
    expected = encoder(0.8 * images + 0.1).argmax(1)
    assert torch.equal(alone(images), expected.flatten(1))
    codes = F.one_hot(expected, VOCABULARY).permute(0, 3, 1, 2).float()
    picture = ((decoder(codes)[:, :3].sigmoid() - 0.1) / 0.8).clamp(0, 1)
    torch.testing.assert_close(both.decode(both(images), (2, 2)), picture)
    save_file({"a": torch.ones(1)}, tmp_path / "encoder.safetensors")
    with pytest.raises(ValueError, match=r"must hold one encoder; got encoder\.pkl, encoder\.safetensors"):
        load_tokenizer(f"dalle:{tmp_path}")
    with pytest.raises(ValueError, match=r"must hold encoder\.pkl"):
        load_tokenizer(f"dalle:{tmp_path.parent}")


def with_bomb(tmp_path):
    module = Encoder()
    module.hook = Bomb(tmp_path / "canary")
    return module


def with_bomb_among_the_parameters(tmp_path):
    module = Encoder()
    module.blocks.input.__dict__["_parameters"]["c"] = Bomb(tmp_path / "canary")
    return module


def with_function(tmp_path):
    module = Encoder()
    module.hook = torch.nn.functional.relu
    return module


def with_unknown_class(tmp_path):
    module = Encoder()
    module.other = Other()
    return module


@pytest.mark.parametrize(
    ("make", "called"),
    [
        (with_bomb, r"pathlib\.Path\.touch|\S*getattr"),
        (with_bomb_among_the_parameters, r"pathlib\.Path\.touch|\S*getattr"),
        (with_function, r"torch\.nn\.functional\.relu"),
        (with_unknown_class, r"dall_e\.utils\.Other"),
    ],
)
def test_what_else_a_file_names_is_refused_and_not_executed(write, tmp_path, make, called):
    path = write(make(tmp_path))
    with pytest.raises(ValueError, match=f"calls ({called})") as error:
        load_dalle(DVAEEncoder, path)
    assert "was not executed" in str(error.value)
    assert not (tmp_path / "canary").exists()


def with_buffer(module):
    module.blocks.input.register_buffer("mean", torch.ones(1))


def without_bias(module):
    module.blocks.input.b = None


def with_integers(module):
    module.blocks.input.w = nn.Parameter(torch.ones(8, 3, 7, 7, dtype=torch.long), requires_grad=False)


def misshapen(module):
    module.blocks.group_2.block_1.res_path.conv_2.w = nn.Parameter(torch.ones(4, 4, 1, 1))


def with_more(module):
    module.blocks.add_module("more", Conv2d(8, 8, 1))


def with_itself(module):
    module.blocks._modules["again"] = module


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (with_buffer, r"unexpected: blocks\.input\.mean"),
        (without_bias, r"missing: blocks\.input\.b"),
        (with_integers, r"torch\.int64 under blocks\.input\.w"),
        (misshapen, r"mis-shaped: blocks\.group_2\.block_1\.res_path\.conv_2\.w"),
        (with_more, r"unexpected: blocks\.more\.b, blocks\.more\.w"),
        (with_itself, r"under blocks\.again\.blocks\.again"),
    ],
)
def test_other_networks_are_refused(write, change, match):
    module = Encoder()
    change(module)
    with pytest.raises(ValueError, match=match):
        load_dalle(DVAEEncoder, write(module))


def test_the_two_files_confused(write):
    path = write(Decoder(), "decoder.pkl")
    with pytest.raises(ValueError, match="got the decoder in place of the encoder"):
        load_dalle(DVAEEncoder, path)


def test_other_weights(tmp_path):
    torch.save({"patch_embed.proj.weight": torch.ones(1)}, tmp_path / "mae.pth")
    with pytest.raises(ValueError, match=r"got no convolution blocks\.input\.w.*, but patch_embed\.proj\.weight"):
        load_dalle(DVAEEncoder, tmp_path / "mae.pth")


@pytest.mark.parametrize("length", [0, 9, 120, 5000, -1])
def test_truncated(write, length):
    path = write(Encoder())
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="must be a whole safetensors file or torch checkpoint"):
        load_dalle(DVAEEncoder, path)
