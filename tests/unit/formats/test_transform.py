"""Pictures as an encoder takes them, and an encoder for another image size."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import ENCODER

import pantomim
from pantomim.core.scales import BYTES, Scale
from pantomim.data.sources import open_source
from pantomim.data.stream import evaluation_batches
from pantomim.formats.native import save_encoder
from pantomim.formats.transform import Transform


def pictures(folder, sizes=((40, 30), (17, 60), (16, 16))):
    """Photos in a folder, one of them gray."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number, (height, width) in enumerate(sizes):
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        (picture.convert("L") if number == 1 else picture).save(folder / f"{number}.png")
    return [Image.open(file) for file in sorted(folder.iterdir())]


@pytest.mark.parametrize("margin", [1.0, 1.25])
def test_pictures_are_what_evaluation_looks_at(tmp_path, margin):
    opened = pictures(tmp_path / "photos")
    transform = Transform((16, 24), 3, BYTES, "bicubic", margin)
    dataset = open_source(str(tmp_path / "photos"), "all")
    (expected, _), = evaluation_batches(dataset, (16, 24), 8, "cpu", margin=margin)  # fmt: skip
    assert torch.equal(transform(opened), expected)
    assert torch.equal(transform(opened[1]), expected[1:2])
    gray = Transform((16, 24), 1, BYTES, "bilinear")(opened[0])
    assert gray.shape == (1, 1, 16, 24)


def test_pictures_that_do_not_fit_are_refused():
    image = np.zeros((3, 8, 8), np.uint8)
    with pytest.raises(ValueError, match=r"must have 5 channel\(s\); got an image of shape \(3, 8, 8\)"):
        Transform((8, 8), 5, BYTES, "bicubic")(image)
    with pytest.raises(ValueError, match=r"stored as in training \(uint16\); got uint8"):
        Transform((8, 8), 3, Scale(65535.0, rule="uint16"), "bicubic")(image)


def test_an_encoder_is_loaded_for_another_size(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    save_encoder(tmp_path, ENCODER.build(), scale={"rule": BYTES.rule, "divisor": 255.0}, recipe="tiny")
    encoder = pantomim.load(tmp_path, image_size=(24, 16))
    assert "positions of 16 x 16 pixels are resampled to 24 x 16" in caplog.text
    assert encoder.config.image_size == (24, 16)
    assert encoder(encoder.transform(Image.new("RGB", (50, 50)))).patches.shape == (1, 24, 16)
    assert torch.equal(encoder.blocks[0].attn.qkv.weight, pantomim.load(tmp_path).blocks[0].attn.qkv.weight)
    with pytest.raises(ValueError, match="must be a multiple of the patches"):
        pantomim.load(tmp_path, (18, 16))
