import struct
import zlib

import numpy as np
import pytest
from image_files import png
from masked_images import regions
from PIL import Image

from pantomim.data.decoding import decode, decode_mask
from pantomim.data.mask_files import overlaid, palette, write_mask, write_overlay


def test_the_palette_is_pascals():
    colours = palette().tolist()
    assert colours[0] == [0, 0, 0]
    assert colours[1] == [128, 0, 0]
    assert colours[2] == [0, 128, 0]
    assert colours[8] == [64, 0, 0]
    assert colours[15] == [192, 128, 128]
    assert colours[255] == [224, 224, 192]
    assert len({tuple(colour) for colour in colours}) == 256


def test_a_written_mask_is_read_as_it_was(tmp_path):
    ids = regions(0, (20, 30)).astype(np.int64)
    ids[0, :3] = [200, 254, 255]
    file = write_mask(tmp_path / "below" / "a.png", ids)
    assert (decode_mask(file).ids == ids).all()
    assert (np.asarray(Image.open(file).convert("RGB")) == palette()[ids]).all()


@pytest.mark.parametrize("wrong", [-1, 256])
def test_ids_that_no_palette_has(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"write_mask.ids must be in \[0, 255\].*a\.png"):
        write_mask(tmp_path / "a.png", np.full((2, 2), wrong))
    assert not list(tmp_path.iterdir())


def test_an_overlay_is_half_photo_half_classes(tmp_path):
    photo = decode(png(0, (8, 10)))
    ids = np.zeros((8, 10), int)
    ids[:, 5:], ids[:, :2] = 1, 255
    laid = overlaid(photo, ids, ignore=255)
    assert (laid[:, :2] == photo.transpose(1, 2, 0)[:, :2]).all()
    mixed = 0.5 * photo[:, :, 5:] + np.array([64, 0, 0])[:, None, None]
    assert np.abs(laid[:, 5:].transpose(2, 0, 1) - mixed).max() <= 0.5
    written = decode(write_overlay(tmp_path / "o.png", photo, ids))
    assert (written == overlaid(photo, ids).transpose(2, 0, 1)).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_gray_of_few_bits_keeps_its_ids(bits):
    """Pillow makes whole bytes of them."""
    ids = (np.arange(8).reshape(2, 4) % 2**bits).astype(np.uint8)
    rows = np.unpackbits(ids[..., None], axis=2)[..., 8 - bits :].reshape(2, -1)
    packed = np.packbits(rows, axis=1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 4, 2, bits, 0, 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in packed)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    assert decode_mask(data).ids.tolist() == ids.tolist()
