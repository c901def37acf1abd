import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from pantomim.data import decoding
from pantomim.data.decoding import BrokenImageError, Header, bands_first, decode, decode_header, is_image, plain

RNG = np.random.default_rng(0)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def values(*shape: int, dtype: str = "uint8") -> np.ndarray:
    info = np.iinfo(dtype)
    return RNG.integers(info.min, info.max, shape, endpoint=True).astype(dtype)


def check(data: bytes, expected: np.ndarray) -> None:
    image = decode(data)
    assert image.dtype == expected.dtype
    np.testing.assert_array_equal(image, expected)
    assert decode_header(data) == Header(*expected.shape, expected.dtype.name)


def test_rgb_and_gray_pictures_are_kept_as_they_are():
    colour, gray = values(5, 7, 3), values(5, 7)
    check(encoded(Image.fromarray(colour), "PNG"), colour.transpose(2, 0, 1))
    check(encoded(Image.fromarray(gray), "PNG"), gray[None])


def test_sixteen_bit_gray_png_keeps_its_bits():
    deep = values(5, 7, dtype="uint16")
    check(encoded(Image.fromarray(deep), "PNG"), deep[None])


def test_one_bit_becomes_gray():
    bits = values(4, 6) > 127
    check(encoded(Image.fromarray(bits), "PNG"), bits[None].astype(np.uint8) * np.uint8(255))


def test_alpha_is_composited_on_white():
    pixels = np.zeros((2, 3, 4), dtype=np.uint8)
    pixels[..., 0] = 200
    pixels[0, :, 3] = 255
    image = decode(encoded(Image.fromarray(pixels), "PNG"))
    assert image.shape == (3, 2, 3)
    assert (image[:, 0] == np.array([[200], [0], [0]])).all()
    assert (image[:, 1] == 255).all()


def test_gray_with_alpha_stays_gray():
    clear = Image.new("LA", (3, 2), (90, 0))
    image = decode(encoded(clear, "PNG"))
    assert image.shape == (1, 2, 3)
    assert (image == 255).all()


@pytest.mark.skipif(decoding.simplejpeg is None, reason="needs simplejpeg")
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"quality": 30}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_both_jpeg_decoders_give_the_same_bits(mode, options, monkeypatch):
    smooth = Image.fromarray(values(9, 11, 3)).resize((37, 50)).convert(mode)
    data = encoded(smooth, "JPEG", **options)
    fast = decode(data)
    monkeypatch.setattr(decoding, "simplejpeg", None)
    np.testing.assert_array_equal(fast, decode(data))


def test_palette_and_cmyk_become_rgb():
    colour = Image.fromarray(values(6, 6, 3))
    palette = colour.quantize(16)
    check(encoded(palette, "PNG"), np.asarray(palette.convert("RGB")).transpose(2, 0, 1))
    assert decode(encoded(colour.convert("CMYK"), "JPEG")).shape == (3, 6, 6)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_rotation_is_applied_to_pixels_and_header(orientation):
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(pixels), "JPEG", exif=exif)
    image = decode(data)
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]
    assert image.shape[1:] == np.rot90(pixels, turns).shape[:2]
    assert np.abs(image.astype(int) - np.rot90(pixels, turns).transpose(2, 0, 1)).max() < 60
    header = decode_header(data)
    assert (header.height, header.width) == image.shape[1:]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_tiff_bands_first_and_last_are_the_same_image(dtype):
    bands = values(12, 16, 20, dtype=dtype)
    check(tiff(bands.transpose(1, 2, 0), photometric="minisblack", planarconfig="contig"), bands)
    check(tiff(bands, photometric="minisblack", planarconfig="separate"), bands)
    check(tiff(bands, photometric="minisblack"), bands)  # one page a band


def test_tiff_samples_win_over_the_smallest_axis():
    narrow = values(12, 20, 5, dtype="int16")  # narrower than it has bands
    check(tiff(narrow.transpose(1, 2, 0), photometric="minisblack", planarconfig="contig"), narrow)


def test_tiff_floats_and_gray():
    gray = RNG.normal(size=(6, 9)).astype(np.float32)
    check(tiff(gray), gray[None])


def test_tiff_with_a_palette_becomes_rgb():
    index = values(4, 5)
    table = values(3, 256, dtype="uint16")
    check(tiff(index, photometric="palette", colormap=table), (table >> 8).astype(np.uint8)[:, index])


def test_lzw_tiff_is_read_without_imagecodecs():
    colour = values(8, 9, 3)
    data = encoded(Image.fromarray(colour), "TIFF", compression="tiff_lzw")
    np.testing.assert_array_equal(decode(data), colour.transpose(2, 0, 1))


def test_npy_with_bands_last():
    array = RNG.normal(size=(8, 9, 4))
    buffer = io.BytesIO()
    np.save(buffer, array)
    check(buffer.getvalue(), array.transpose(2, 0, 1))


def test_big_endian_numbers_become_native():
    image = plain(np.arange(6, dtype=">i2").reshape(1, 2, 3))
    assert image.dtype.isnative
    assert image.ravel().tolist() == list(range(6))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 6), (1, 5, 6)),
        ((3, 8, 9), (3, 8, 9)),
        ((8, 9, 3), (3, 8, 9)),
        ((1, 1, 1), (1, 1, 1)),
        ((4, 9, 4), (4, 9, 4)),
        ((12, 8, 8), (12, 8, 8)),
        ((8, 8, 12), (12, 8, 8)),
    ],
)
def test_bands_are_the_smaller_of_first_and_last_axis(shape, expected):
    assert bands_first(np.zeros(shape)).shape == expected


@pytest.mark.parametrize(
    "data",
    [
        b"not an image",
        b"not a tiff",
        b"not an array",
        encoded(Image.fromarray(values(64, 64, 3)), "JPEG")[:900],
        encoded(Image.fromarray(values(64, 64, 3)), "PNG")[:2000],
        tiff(np.full((4, 4), np.nan, np.float32)),
        tiff(values(70, 80, 90)),
    ],
)
def test_unreadable_files_are_broken_images(data):
    with pytest.raises(BrokenImageError):
        decode(data)


def test_pickled_arrays_are_refused():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BrokenImageError, match="Python objects"):
        decode(buffer.getvalue())


def test_hidden_and_other_files_are_no_images():
    names = ["a.jpg", "b/c.TIFF", "d.npy", "._e.jpg", "f.txt", "g.jpg.part", "jpg"]
    assert [is_image(name) for name in names] == [True, True, True, False, False, False, False]
