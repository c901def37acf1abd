"""Runs on packs and shards: those on the folder that these were made from."""

import io

import numpy as np
import pytest
from image_files import fill
from killed import Killed, kill_after
from PIL import Image
from shard_files import same_as
from tiny import tiny_run

from pantomim.config import DataConfig
from pantomim.engine.pretrain import pretrain
from pantomim.engine.record import read_metrics


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (18 + seed % 5, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "JPEG")
    return buffer.getvalue()


def losses(source, out):
    data = DataConfig(source=str(source), workers=1, memory_gib=1e-9)
    pretrain(tiny_run(source, steps=10, data=data, runtime={"save_every": 3}), out)
    return [line["loss"] for line in read_metrics(out / "metrics.jsonl")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    names = [f"{split}/{c}/{k:02}.jpg" for split in ("train", "test") for c in ("cat", "dog") for k in range(20)]
    return fill(tmp_path_factory.mktemp("pets"), {name: jpeg(seed) for seed, name in enumerate(names)})


@pytest.fixture(scope="module")
def expected(folder, tmp_path_factory):
    return losses(folder, tmp_path_factory.mktemp("run") / "folder")


@pytest.mark.parametrize("kind", ["pack", "tars of the folder", "tars of a split", "parquet"])
def test_losses_are_those_of_the_folder_also_of_a_run_that_was_killed(folder, expected, kind, tmp_path, monkeypatch):
    source = same_as(folder, kind, tmp_path)
    with monkeypatch.context() as patch:
        kill_after(7, patch)
        with pytest.raises(Killed):
            losses(source, tmp_path / "run")
    assert losses(source, tmp_path / "run") == expected
