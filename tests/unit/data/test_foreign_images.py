"""Files that claim, hide or break: each has the right values, or a reason in a few words, and takes no memory."""

import io
import os
import re
import shutil
import stat
import struct
import zipfile

import numpy as np
import pytest
import tifffile
from image_files import fill, npy_of, png, png_of, zip_claiming
from PIL import Image, ImageCms

from pantomim.core.foreign import reason
from pantomim.data import decoding
from pantomim.data.decoding import LIMIT, BrokenImageError, decode, decode_header, decode_mask
from pantomim.data.sources import open_source

RNG = np.random.default_rng(0)
GRAY = np.arange(60, dtype=np.uint8).reshape(6, 10)
DEEP = RNG.integers(0, 2**16, (5, 7, 3)).astype(np.uint16)
COLOUR = RNG.integers(0, 256, (8, 8, 3)).astype(np.uint8)


def picture(array: np.ndarray | Image.Image, kind: str, mode: str | None = None, **options) -> bytes:
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def tiff(array: np.ndarray, **options) -> bytes:
    tifffile.imwrite(buffer := io.BytesIO(), array, **options)
    return buffer.getvalue()


def lab() -> bytes:
    profiles = [ImageCms.createProfile(space) for space in ("sRGB", "LAB")]
    return picture(ImageCms.profileToProfile(Image.fromarray(COLOUR), *profiles, outputMode="LAB"), "TIFF")


def cut(bits: int) -> np.ndarray:
    """Values of so many bits, and the 16-bit ones that they stand for."""
    return (DEEP >> (16 - bits)).astype(np.uint16)


def pnm(values: np.ndarray, top: int, kind: bytes = b"P6") -> bytes:
    head = b"%s # a comment\n%d %d\n%d\n" % (kind, values.shape[1], values.shape[0], top)
    if kind in (b"P2", b"P3"):
        return head + b" ".join(b"%d" % value for value in values.reshape(-1).tolist())
    return head + values.astype(">u2" if top > 255 else "u1").tobytes()


def white_is_zero(array: np.ndarray, compression: str | None = None) -> bytes:
    """Pillow writes gray, and the tag is changed in the file: 262 is 0."""
    data = picture(array, "TIFF", compression=compression)
    return data.replace(b"\x06\x01\x03\x00\x01\x00\x00\x00\x01\x00", b"\x06\x01\x03\x00\x01\x00\x00\x00\x00\x00")


RIGHT = {
    "ppm of 12 bits": (pnm(cut(12), 4095), np.rint(cut(12) * (65535 / 4095)).astype(np.uint16)),
    "ppm of 12 bits in words": (pnm(cut(12), 4095, b"P3"), np.rint(cut(12) * (65535 / 4095)).astype(np.uint16)),
    "pgm of 16 bits": (pnm(DEEP[..., 0], 65535, b"P5"), DEEP[..., :1]),
    "pgm up to 20": (pnm(GRAY % 21, 20, b"P5"), np.rint(GRAY % 21 * (255 / 20)).astype(np.uint8)[..., None]),
    "ppm of 8 bits": (pnm(COLOUR, 255), COLOUR),
    "png of 16 bits": (png_of(DEEP), DEEP),
    "png of 16 bits, opaque": (png_of(np.dstack([DEEP, np.full((5, 7), 65535)])), DEEP),
    "png of 16 bits, clear": (png_of(np.dstack([DEEP, np.zeros((5, 7))])), np.full_like(DEEP, 65535)),
    "white is zero": (white_is_zero(GRAY), 255 - GRAY[..., None]),
    "white is zero, packed": (white_is_zero(GRAY, "packbits"), 255 - GRAY[..., None]),
    "white is zero, lzw": (white_is_zero(GRAY, "tiff_lzw"), 255 - GRAY[..., None]),
    "white is zero, 16 bits": (tiff(DEEP[..., 0], photometric="miniswhite"), 65535 - DEEP[..., :1]),
    "white is zero, one bit": (
        white_is_zero(GRAY > 30, "group4"),
        np.where(GRAY > 30, 0, 255).astype(np.uint8)[..., None],
    ),
    "palette, lzw": (
        picture(Image.fromarray(COLOUR).quantize(8), "TIFF", compression="tiff_lzw"),
        np.asarray(Image.fromarray(COLOUR).quantize(8).convert("RGB")),
    ),
    "tiff in cmyk": (
        picture(COLOUR, "TIFF", "CMYK"),
        np.asarray(Image.fromarray(COLOUR).convert("CMYK").convert("RGB")),
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_values_are_right_in_every_container(name):
    data, expected = RIGHT[name]
    image = decode(data)
    assert image.dtype == expected.dtype
    np.testing.assert_array_equal(image.transpose(1, 2, 0), expected)
    header = decode_header(data)
    assert ((header.channels, header.height, header.width), header.dtype) == (image.shape, image.dtype.name)


@pytest.mark.parametrize(
    ("data", "ids"),
    [
        (white_is_zero(GRAY), GRAY),
        (white_is_zero(GRAY, "tiff_lzw"), GRAY),
        (tiff(GRAY, photometric="palette", colormap=np.zeros((3, 256), np.uint16)), GRAY),
        (pnm(GRAY % 21, 20, b"P5"), GRAY % 21),
        (picture(GRAY % 4, "PNG", "P"), GRAY % 4),
    ],
    ids=["white is zero", "white is zero, lzw", "tiff with palette", "pgm up to 20", "png with palette"],
)
def test_masks_keep_what_is_stored(data, ids):
    np.testing.assert_array_equal(decode_mask(data).ids, ids)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "npy", "pnm"])
def test_a_file_is_what_its_content_says(tmp_path, kind):
    np.save(array := io.BytesIO(), GRAY)
    data = {"npy": array.getvalue(), "pnm": pnm(GRAY, 255, b"P5")}.get(kind) or picture(GRAY, kind)
    for suffix in (".tif", ".jpg", ".npy"):
        dataset = open_source(str(fill(tmp_path / suffix, {f"a{suffix}": data, f"b{suffix}": data})), "all")
        assert dataset.read(0).shape == (dataset.channels, *dataset.size(0)) == (dataset.channels, 6, 10)


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_orientation_that_there_is_not_turns_nothing(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = picture(GRAY, "JPEG", exif=exif)
    header = decode_header(data)
    assert (header.height, header.width) == decode(data).shape[1:] == GRAY.shape


def jpeg_claiming(height: int, width: int) -> bytes:
    """A small gray JPEG whose header claims another size."""
    data = picture(GRAY, "JPEG")
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[place + 4 :]


def tiff_claiming(side: int) -> bytes:
    """A TIFF of one pixel whose tags of width and height claim another side."""
    data = tiff(np.zeros((1, 1), np.uint8), compression="zlib")
    for tag in (256, 257):
        entry = struct.pack("<HHII", tag, 4, 1, 1)
        assert entry in data
        data = data.replace(entry, struct.pack("<HHII", tag, 4, 1, side))
    return data


BOMBS = {
    "jpeg": jpeg_claiming(30_000, 30_000),
    "png": png_of(DEEP, (30_000, 30_000)),
    "pnm": b"P5 300000 300000 255\n" + b"x" * 100,
    "tiff": tiff_claiming(60_000),
    "npy": npy_of((3, 10**6, 10**7)),
    "npy, one byte short": npy_of((4, 4), data=b"x" * 63),
    "npy, negative": npy_of((-4, -4), data=b"x" * 64),
    "bmp": picture(GRAY, "BMP")[:18] + (30_000).to_bytes(4, "little") * 2 + picture(GRAY, "BMP")[26:],
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("fast", [True, False])
def test_a_bomb_is_a_broken_image(name, fast, monkeypatch):
    if not fast:
        monkeypatch.setattr(decoding, "simplejpeg", None)
    for read in (decode, decode_header, decode_mask):
        with pytest.raises(BrokenImageError, match=f"megapixels.*{LIMIT}|claims an array"):
            read(BOMBS[name])


def test_the_limit_can_be_moved(monkeypatch):
    monkeypatch.setenv(LIMIT, "0.00005")
    with pytest.raises(BrokenImageError, match=f"are the limit.*{LIMIT}=1$"):
        decode(picture(GRAY, "PNG"))
    monkeypatch.setenv(LIMIT, "all")
    with pytest.raises(BrokenImageError, match=f"{LIMIT} is not a number above 0; got 'all'"):
        decode(picture(GRAY, "PNG"))
    monkeypatch.setenv(LIMIT, "1")
    assert decode(picture(GRAY, "PNG")).shape == (1, 6, 10)
    monkeypatch.setenv(LIMIT, "0.00001")
    assert decode(tiff(GRAY)).shape == (1, 6, 10), "a file as large as its pixels is no bomb"


@pytest.mark.parametrize("claimed", [1_000, 10**12, 2**64 - 1])
def test_a_zip_member_is_inflated_no_further_than_it_claims(tmp_path, claimed):
    import tracemalloc

    files = [(f"{k}.png", png(k)) for k in range(120)]
    path = zip_claiming(tmp_path / "a.zip", "x.png", b"\0" * 3 * 10**7, claimed)
    with zipfile.ZipFile(path, "a") as archive:
        for name, data in files:
            archive.writestr(name, data)
    dataset = open_source(str(path), "all")
    tracemalloc.start()
    with pytest.raises(BrokenImageError, match=r"checksum|megapixels"):
        dataset.read(120)
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()
    assert [image.name for image in dataset.broken] == ["x.png"]


@pytest.mark.parametrize("name", ["images", "labels"])
@pytest.mark.parametrize("shape", [(10**5, 10**4, 10**4), (20,)])
def test_an_npz_that_claims_more_than_it_holds(tmp_path, name, shape):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for member in ("images", "labels"):
            held = npy_of((4, 6, 6, 3), "|u1", bytes(432)) if member == "images" else npy_of((4,), "<i8", bytes(32))
            archive.writestr(f"{member}.npy", npy_of(shape, data=b"1" * 8) if member == name else held)
    with pytest.raises(ValueError, match=rf"readable .npz .*whose array {name} claims an array of"):
        open_source(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("kind", ["a.zip", "a.npz"])
def test_damaged_archives_end_in_a_message(tmp_path, kind):
    """Bytes of the list of members are changed at random: it opens, or says what it must be."""
    with zipfile.ZipFile(tmp_path / kind, "w", zipfile.ZIP_DEFLATED) as archive:
        if kind == "a.npz":
            archive.writestr("images.npy", npy_of((9, 6, 6, 3), "|u1", bytes(972)))
        else:
            for k in range(4):
                archive.writestr(f"{k}.png", png(k))
    whole = (tmp_path / kind).read_bytes()
    start, seen = whole.index(b"PK\x01\x02"), 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        damaged = bytearray(whole)
        for place in random.integers(0 if seed % 3 == 0 else start, len(whole), 1 + seed % 4):
            damaged[place] = random.integers(256)
        (tmp_path / kind).write_bytes(damaged)
        try:
            dataset = open_source(str(tmp_path / kind), "all")
            dataset.array(1.0)
        except ValueError as error:
            assert re.match("(Source|Dataset)[.]", str(error))  # noqa: PT017
            seen += 1
    assert seen > 30


def test_damaged_headers_of_npy_are_broken_images():
    for seed in range(200):
        random, data = np.random.default_rng(seed), bytearray(npy_of((3, 5, 7), data=bytes(420)))
        for place in random.integers(0, 128, 1 + seed % 4):
            data[place] = random.integers(256)
        try:
            image = decode(bytes(data))
        except BrokenImageError as error:
            assert not re.search("allow_pickle|0x|max_header", str(error))  # noqa: PT017
        else:
            assert image.nbytes <= 420


def test_no_other_program_is_started(tmp_path, monkeypatch):
    """PostScript under the name of a picture is no picture, also where another library opens it."""
    from pantomim.data.stores import PictureStore

    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    os.chmod(tmp_path / "bin" / "gs", stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    assert shutil.which("gs") == str(tmp_path / "bin" / "gs")
    (tmp_path / "x.jpg").write_bytes(picture(COLOUR, "EPS"))
    for read in (decode, decode_header, decode_mask):
        with pytest.raises(BrokenImageError, match="is no picture that can be read"):
            read(tmp_path / "x.jpg")
    with pytest.raises(BrokenImageError), Image.open(tmp_path / "x.jpg") as image:
        PictureStore(lambda position: image.convert("RGB"), 1).decode(0)
    assert not (tmp_path / "started").exists()


def test_files_that_another_library_hands_out_are_read_by_the_same_rules():
    from pantomim.data.stores import PictureStore

    store = PictureStore(lambda position: {"bytes": png_of(DEEP), "path": None}, 1)
    np.testing.assert_array_equal(store.decode(0).transpose(1, 2, 0), DEEP)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            picture(np.dstack([COLOUR, COLOUR[..., :1]]), "TIFF", compression="tiff_lzw"),
            "compressed by LZW.*imagecodecs",
        ),
        (lab(), "in CIELAB; save it in"),
        (tiff(GRAY.astype(np.float32), photometric="miniswhite"), "0 is white"),
        (pnm(GRAY, 30, b"P5"), "above the largest"),
        (pnm(GRAY, 255, b"P5")[:-1], "is cut"),
        (b"\xff\xd8 no picture", "is no picture"),
        (b"II*\0 no tiff at all", "."),
    ],
)
def test_reasons_are_in_words(data, words):
    with pytest.raises(BrokenImageError, match=words) as error:
        decode(data)
    assert not re.search("0x|allow_pickle|BytesIO", str(error.value))


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("cannot identify image file <_io.BytesIO object at 0x7f12ab>", "cannot identify image file the file"),
        ("Object arrays cannot be loaded when allow_pickle=False", "it would have to run code to be read"),
        ("set `weights_only` to `False`", "it would have to run code"),
        ("a\n  b", "a b"),
        ("", "ValueError"),
    ],
)
def test_what_other_libraries_say_is_shown_without_addresses_and_bad_advice(said, shown):
    assert reason(ValueError(said)).startswith(shown)
    assert len(reason(ValueError("x" * 999))) == 200


@pytest.mark.parametrize(("num", "stops"), [(150, False), (40, True)])
def test_one_image_of_another_kind_is_named(tmp_path, num, stops):
    files = {f"{k:03}.png": png(k, channels=1) for k in range(num)} | {"odd.png": picture(DEEP[..., 0], "PNG")}
    spec = str(fill(tmp_path, files))
    if stops:
        with pytest.raises(ValueError, match=r"got 1 of 1 x uint16, 40 of 1 x uint8 in .*among them odd\.png"):
            open_source(spec, "all")
    else:
        dataset = open_source(spec, "all")
        assert [(item.name, item.reason) for item in dataset.broken] == [
            ("odd.png", "is 1 x uint16 in a set of 1 x uint8")
        ]
        assert dataset.facts.dtype == "uint8"


def test_all_broken_images_are_named_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PANTOMIM_CACHE", str(tmp_path / "cache"))
    good = png(0)
    files = {
        f"{s}/{k:03}.png": good[:-60] if k % 2 else good for s, n in (("train", 100), ("test", 40)) for k in range(n)
    }
    dataset = open_source(str(fill(tmp_path / "a", files)))
    with pytest.raises(ValueError, match=r"(?s)got 50 of 100 in .*, and 20 beyond these.*and 20 more; all of") as error:
        dataset.mark_broken({1: "image file is truncated", 3: "image file is truncated"})
    (listed,) = (tmp_path / "cache" / "broken").iterdir()
    assert str(listed) in str(error.value)
    names = [line.partition("\t")[0] for line in listed.read_text().splitlines()]
    assert sorted(names) == sorted(name for name, data in files.items() if data != good)
