import io
import pickle
import sys

import numpy as np
import pytest
import torch
from image_files import fill, png
from PIL import Image
from shard_files import same_as, write_parquet, write_tar

import pantomim.data.shards as shards
from pantomim.core.files import cache_folder
from pantomim.data.sources import open_source, splits
from pantomim.data.stream import Stream
from pantomim.data.transforms import Crop

KINDS = ["pack", "tars of the folder", "tars of a split", "parquet"]


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12 + seed % 5, 14, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    counts = {"train": 9, "test": 2}
    names = [f"{split}/{c}/{k}.jpg" for split, count in counts.items() for c in ("cat", "dog") for k in range(count)]
    return fill(tmp_path_factory.mktemp("pets"), {name: jpeg(seed) for seed, name in enumerate(names)})


def batches(spec, start=0, stop=9, **how):
    options = {"batch_size": 4, "image_size": (8, 8), "crop": Crop(), "seed": 3, "device": "cpu", "workers": 0} | how
    return [part for step in Stream(open_source(spec), **options).batches(start, stop) for part in step]


def assert_same(first, second):
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.ids, two.ids)
        assert torch.equal(one.labels, two.labels)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_is_the_folder_it_was_made_from(folder, kind, tmp_path):
    spec = same_as(folder, kind, tmp_path)
    assert splits(spec) == ("train", "test")
    for split in ("train", "test", "all"):
        ours, theirs = open_source(spec, split), open_source(str(folder), split)
        assert ours.classes == theirs.classes == ("cat", "dog")
        again = pickle.loads(pickle.dumps(ours))
        order = [ours.names.index(name) for name in theirs.names]  # those of a parquet file stay in its order
        assert sorted(order) == list(range(len(ours)))
        for index, other in enumerate(order):
            np.testing.assert_array_equal(again.read(other), theirs.read(index))
            assert ours.labels[other] == theirs.labels[index]
    whole = batches(str(folder))
    assert_same(whole, batches(spec))
    assert_same(whole[5:], batches(spec, 5, workers=1, memory_gib=0.0))


def test_row_groups_are_read_in_turn_and_mixed_by_seed_and_epoch_alone(tmp_path, monkeypatch):
    images = {f"{k}.png": png(k, (8, 8 + k % 3)) for k in range(40)}
    for shard in range(2):
        part = dict(list(images.items())[20 * shard : 20 * shard + 20])
        write_parquet(tmp_path / f"train-{shard:05}-of-00002.parquet", part, [0, 1] * 10, ["a", "b"], rows=5)
    small = max(open_source(str(tmp_path), "all")._store._sizes[:, 1]) * 2
    monkeypatch.setattr(shards, "AT_ONCE", int(small))  # two row groups of five images
    how = {"batch_size": 8, "memory_gib": 0.0}
    dataset = open_source(str(tmp_path), "all")
    assert dataset.parts.at_once == 2
    stream = Stream(dataset, image_size=(8, 8), crop=Crop(), seed=3, device="cpu", workers=0, **how)
    epochs = [np.concatenate([stream.ids(step) for step in range(5 * e, 5 * e + 5)]) for e in (0, 1)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(40))] * 2
    assert (epochs[0] != epochs[1]).any()
    for epoch in epochs:
        blocks = (epoch // 5).reshape(4, 10)
        assert all(len(set(block)) == 2 for block in blocks)
        assert any((np.diff(block) != 0).sum() > 1 for block in blocks)
    dataset._store._column.cache_clear()
    whole = [part for step in stream.batches(0, 5) for part in step]
    assert dataset._store._column.cache_info().misses == 8  # each once
    ranks = [batches(str(tmp_path), 0, 4, rank=rank, world=2, micro=2, **how) for rank in (0, 1)]
    one = batches(str(tmp_path), 0, 4, micro=4, **how)
    assert_same(one, [part for pair in zip(*ranks, strict=True) for part in pair])
    assert len(whole) == 5


def test_webdataset_labels_captions_and_masks(tmp_path):
    members = {f"{k:04}.{end}": png(k) for k in range(6) for end in ("png", "seg.png")}
    told = {f"{k:04}.txt": b"a photo of number %d" % k for k in range(6)}
    spec = str(write_tar(tmp_path / "a.tar", members | told))
    captions = open_source(spec, "all")
    assert (len(captions), captions.labels, captions.name) == (6, None, "a")
    assert captions.left_out == {"beside an image of the same key": 6}
    for shard in ("b/x-0.tar", "b/x-1.tar"):  # the same keys in both
        write_tar(tmp_path / shard, members | told | {f"{k:04}.cls": b"%d\n" % (k % 2 + 9) for k in range(5)})
    dataset = open_source(str(tmp_path / "b"), "all")
    assert dataset.names[6] == "x-1/0000.png"
    assert dataset.classes == ("9", "10")
    assert dataset.labels.tolist() == [0, 1, 0, 1, 0, -1] * 2


def test_the_index_of_a_tar_is_kept_and_made_again_once_the_tar_has_changed(tmp_path, monkeypatch, caplog):
    path = write_tar(tmp_path / "a.tar", {f"{k}.png": png(k) for k in range(3)})
    opened = open_source(str(path), "all")
    assert (tmp_path / ".a.tar.index").is_file()
    assert len(open_source(str(tmp_path), "all")) == 3
    made = shards._index
    monkeypatch.setattr(shards, "_index", None)
    assert len(open_source(str(path), "all")) == 3
    monkeypatch.setattr(shards, "_index", made)
    write_tar(path, {f"new{k}.png": png(k) for k in range(4)})
    with pytest.raises(ValueError, match=r"is not where it was in a\.tar, which has changed"):
        opened.read(0)
    with caplog.at_level("INFO"):
        assert len(open_source(str(path), "all")) == 4
    assert "a.tar has changed since its index" in caplog.text
    (tmp_path / ".a.tar.index").unlink()
    (tmp_path / ".a.tar.index").mkdir()  # as where it cannot be written
    assert len(open_source(str(path), "all")) == 4
    assert len(list((cache_folder() / "shards").glob("*.index"))) >= 1


@pytest.mark.parametrize("end", [".tar", ".parquet"])
def test_damaged_and_missing_shards_are_named(tmp_path, end, monkeypatch):
    images = {f"{k}.png": png(k) for k in range(4)}
    first, path = tmp_path / f"s-0{end}", tmp_path / f"s-1{end}"
    for each in (first, path):
        if end == ".tar":
            write_tar(each, images)
        else:
            write_parquet(each, images, [0, 1, 0, 1], ["a", "b"])
    opened = open_source(str(tmp_path), "all")
    whole = path.read_bytes()
    for damaged in (whole[:2000], whole[:1024] + b"x" * (len(whole) - 1024), whole[:900]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"Source.spec must be whole .*; got .*s-1{end}"):
            open_source(str(tmp_path), "all")
    if end == ".parquet":
        opened._store._column.cache_clear()
    with pytest.raises(ValueError, match=rf"(lies beyond the end of|cannot be read from) s-1{end}"):
        opened.read(7)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"s-1{end}"):
        open_source(f"{tmp_path}/s-{{0..1}}{end}")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    if end == ".parquet":
        with pytest.raises(ValueError, match=r"pip install 'pantomim\[parquet\]'"):
            open_source(str(first))


def test_parquet_files_without_images_and_shards_of_two_kinds_are_refused(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"images as bytes and path; got text in .*a\.parquet"):
        open_source(str(tmp_path))
    write_tar(tmp_path / "b.tar", {"0.png": png(0)})
    with pytest.raises(ValueError, match="must hold tar or parquet shards; got both"):
        open_source(str(tmp_path))
