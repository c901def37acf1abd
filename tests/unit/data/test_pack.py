import errno
import os

import numpy as np
import pytest
from image_files import broken_folder, fill, png
from synthetic import write_synthetic

from pantomim.core import files
from pantomim.data import pack
from pantomim.data.decoding import BrokenImageError
from pantomim.data.pack import write_pack
from pantomim.data.sources import open_source, read_contents
from pantomim.data.stream import Stream
from pantomim.data.transforms import Crop


def packed(spec, path, **how):
    broken = write_pack(read_contents(spec), spec, path, **how)
    return broken, str(path)


def test_bands_and_number_type_are_kept(tmp_path):
    spec = str(write_synthetic(tmp_path / "s.npz", 40, size=12, channels=5, dtype="uint16"))
    _, path = packed(spec, tmp_path / "s.pack")
    for split in ("train", "test"):
        ours, theirs = open_source(path, split), open_source(spec, split)
        assert ours.facts == theirs.facts
        np.testing.assert_array_equal(ours.array(1.0), theirs.array(1.0))
        np.testing.assert_array_equal(ours.labels, theirs.labels)
    _, small = packed(spec, tmp_path / "small.pack", size=6)
    assert open_source(small).facts.size == (6, 6)
    assert open_source(small).facts.dtype == "uint16"


@pytest.mark.parametrize(("quality", "far"), [(None, 0.51), (95, 12)])
def test_a_size_brings_the_shorter_side_down_and_never_up(tmp_path, quality, far):
    ramp = np.linspace(0, 255, 40 * 60 * 3).reshape(40, 60, 3).astype(np.uint8)
    np.save(tmp_path / "0.npy", ramp)
    np.save(tmp_path / "1.npy", ramp[:10, :12])
    _, path = packed(str(tmp_path), tmp_path / "p.pack", size=20, quality=quality)
    dataset = open_source(path, "all")
    assert [dataset.size(index) for index in (0, 1)] == [(20, 30), (10, 12)]
    assert np.abs(dataset.read(1).transpose(1, 2, 0) - ramp[:10, :12].astype(float)).max() <= far
    with pytest.raises(ValueError, match="quality must go with a size"):
        packed(str(tmp_path), tmp_path / "q.pack", quality=90)


def test_broken_images_are_named_and_leave_the_order_as_it_is(tmp_path):
    spec = broken_folder(tmp_path / "a", 300, 2)
    broken, path = packed(spec, tmp_path / "a.pack")
    assert [item.name for item in broken] == ["0003.png", "0010.png"]
    made = []
    for source in (spec, path):
        how = {"batch_size": 60, "image_size": (8, 8), "crop": Crop(), "device": "cpu", "workers": 0}
        dataset = open_source(source, "all")
        made.append([batch for (batch,) in Stream(dataset, seed=1, **how).batches(0, 5)])
        assert len(dataset.broken) == 2
    for one, two in zip(*made, strict=True):
        assert one.ids.tolist() == two.ids.tolist()
        assert one.images.equal(two.images)


def test_damage_is_found_and_named(tmp_path):
    spec = str(fill(tmp_path / "a", {f"{k}.png": png(k) for k in range(3)}))
    _, name = packed(spec, path := tmp_path / "a.pack")
    whole, offset = path.read_bytes(), int(open_source(name, "all")._store._rows[1, 0])
    path.write_bytes(whole[: offset + 50] + bytes([whole[offset + 50] ^ 1]) + whole[offset + 51 :])
    with pytest.raises(ValueError, match=r"1\.png: fails its checksum in a\.pack"):
        open_source(name, "all")
    for damaged in (whole[:-1], whole[:-300] + b"x" + whole[-299:], b"", b"x" * 9):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"must be a whole pack; got .*a\.pack, cut or damaged"):
            open_source(name, "all")


def test_a_pack_is_whole_or_not_there(tmp_path, monkeypatch):
    spec, out = str(fill(tmp_path / "a", {f"{k}.png": png(k) for k in range(3)})), tmp_path / "out"
    out.mkdir()
    (out / ".a.pack.0123abcd.tmp").write_bytes(b"of a process that was killed")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left.*a\.pack"):
            packed(spec, out / "a.pack")
    assert not list(out.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
        with pytest.raises(OSError, match="more than is free"):
            packed(spec, out / "a.pack")
    packed(spec, out / "a.pack")
    with pytest.raises(ValueError, match="must be a new file"):
        packed(spec, out / "a.pack")
    assert [path.name for path in out.iterdir()] == ["a.pack"]


def test_who_packs_to_a_name_is_left_alone(tmp_path, monkeypatch):
    spec, out, asked = str(fill(tmp_path / "a", {"0.png": png(0)})), tmp_path / "a.pack", []

    def replacing(path):
        with pytest.raises(ValueError, match=r"must not be in use; got .*a\.pack"):
            packed(spec, path)
        asked.append(path)
        return files.replacing(path)

    monkeypatch.setattr(pack, "replacing", replacing)
    packed(spec, out)
    assert asked == [out]


def test_the_reason_of_a_broken_image_is_told(tmp_path):
    _, path = packed(broken_folder(tmp_path / "a", 300, 1), tmp_path / "a.pack")
    with pytest.raises(BrokenImageError, match="was broken when it was packed"):
        open_source(path, "all").read(3)
