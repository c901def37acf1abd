"""Small discrete auto-encoders of DALLE-pytorch, CAE and BEiT: made files, against the layers applied one by one."""

import pytest
import torch
from torch.nn import functional as F

from pantomim.formats.strided_dvae import load_strided_dvae
from pantomim.nn.strided_dvae import StridedDVAE, StridedSizes
from pantomim.tokenizers import load_tokenizer
from pantomim.tokenizers.resized import on_grid

STACKED = ["conv 0", "conv 1", "conv 2", "net 3", "net 4", "last 5"]
STACKED_BACK = ["last 0", "net 1", "net 2", "up 3", "up 4", "up 5", "last 6"]
INTERLEAVED = ["conv 0", "net 1", "conv 2", "net 3", "conv 4", "net 5", "last 6"]
INTERLEAVED_BACK = ["up 0", "net 1", "up 2", "net 3", "up 4", "net 5", "last 6"]


def made(interleaved):
    """Weights by the tables of names; 11 codes of 6 numbers, 8 channels inside."""
    generator, found = torch.Generator().manual_seed(0), {}

    def put(name, *shape):
        found[f"{name}.weight"] = torch.randn(*shape, generator=generator) * 0.2
        found[f"{name}.bias"] = torch.randn(shape[1] if "decoder" in name and shape[2] == 4 else shape[0]) * 0.1

    found["codebook.weight"] = torch.randn(11, 6, generator=generator)
    for side, order in (
        ("encoder", INTERLEAVED if interleaved else STACKED),
        ("decoder", INTERLEAVED_BACK if interleaved else STACKED_BACK),
    ):
        for number, (kind, place) in enumerate(part.split() for part in order):
            name = f"{side}.{place}"
            first = 3 if side == "encoder" else 6
            inward = first if number == 0 else 8
            if kind == "net":
                for inner, kernel in ((0, 3), (2, 3), (4, 1)):
                    put(f"{name}.net.{inner}", 8, 8, kernel, kernel)
            elif kind == "last":
                outward = (11 if side == "encoder" else 3) if number else 8
                put(name, outward, inward, 1, 1)
            elif kind == "conv":
                put(f"{name}.0", 8, inward, 4, 4)
            else:
                put(f"{name}.0", inward, 8, 4, 4)
    return found


def applied(weights, side, order, maps):
    for kind, place in (part.split() for part in order):
        name = f"{side}.{place}"

        def layer(name):
            return weights[f"{name}.weight"], weights[f"{name}.bias"]

        if kind == "conv":
            maps = F.conv2d(maps, *layer(f"{name}.0"), stride=2, padding=1).relu()
        elif kind == "up":
            maps = F.conv_transpose2d(maps, *layer(f"{name}.0"), stride=2, padding=1).relu()
        elif kind == "net":
            inner = F.conv2d(maps, *layer(f"{name}.net.0"), padding=1).relu()
            inner = F.conv2d(inner, *layer(f"{name}.net.2"), padding=1).relu()
            maps = maps + F.conv2d(inner, *layer(f"{name}.net.4"))
        else:
            maps = F.conv2d(maps, *layer(name))
    return maps


@pytest.mark.parametrize(("interleaved", "wrapper"), [(True, "weights"), (False, "model"), (False, "weights")])
def test_a_made_file_gives_the_ids_and_pictures_of_its_layers(tmp_path, interleaved, wrapper):
    weights = made(interleaved)
    hparams = {"hparams": {"num_layers": 3, "hidden_dim": 8}} if not interleaved else {}
    torch.save(hparams | {wrapper: weights}, tmp_path / "file.pth")
    tokenizer = load_tokenizer(f"dvae:{tmp_path / 'file.pth'}")
    images = torch.rand(2, 3, 16, 24)
    scores = applied(weights, "encoder", INTERLEAVED if interleaved else STACKED, images * 2 - 1)
    ids = tokenizer(images)
    assert (tokenizer.vocabulary, tokenizer.stride, tokenizer.grid_of((16, 24))) == (11, 8, (2, 3))
    assert torch.equal(ids, scores.argmax(dim=1).flatten(1))
    maps = weights["codebook.weight"][ids].mT.unflatten(-1, (2, 3))
    shown = applied(weights, "decoder", INTERLEAVED_BACK if interleaved else STACKED_BACK, maps)
    assert torch.allclose(tokenizer.decode(ids, (2, 3)), (shown * 0.5 + 0.5).clamp(0, 1), atol=1e-6)
    assert on_grid(tokenizer, (32, 32), (2, 2))(torch.rand(1, 3, 32, 32)).shape == (1, 4)
    with pytest.raises(ValueError, match="multiple of the tokenizer's stride, 8; got 12x16"):
        tokenizer(torch.rand(1, 3, 12, 16))


@pytest.mark.parametrize(("interleaved", "expected"), [(True, 20_081_411), (False, 16_672_259)])
def test_published_sizes(interleaved, expected):
    """Section 5.4 of the specification."""
    with torch.device("meta"):
        assert sum(weight.numel() for weight in StridedDVAE(StridedSizes(interleaved)).parameters()) == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"encoder.3.net.2.bias": None}, r"missing: encoder\.3\.net\.2\.bias"),
        ({"extra": torch.zeros(1)}, "unexpected: extra"),
        ({"decoder.6.weight": torch.zeros(1)}, r"mis-shaped: decoder\.6\.weight \(1,\)"),
        ({"codebook.weight": None}, "no codebook.weight and encoder.0.0.weight"),
    ],
)
def test_every_name_and_shape_counts(tmp_path, change, said):
    weights = {name: tensor for name, tensor in (made(False) | change).items() if tensor is not None}
    torch.save({"model": weights}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=said):
        load_strided_dvae(tmp_path / "file.pth")
