"""The ids of a data set: in order, in a file, kept as long as nothing they depend on changes."""

import numpy as np
import pytest
import torch
from tiny import tiny_images

from pantomim.analysis.tokens import ids_key, write_ids, write_tokenizer_report
from pantomim.config import to_yaml
from pantomim.data.sources import open_source
from pantomim.nn.dvae import DVAENetworks, DVAESizes
from pantomim.recipes import prepare
from pantomim.tokenizers.dvae import DVAETokenizer
from pantomim.tokenizers.random_projection import RandomProjectionTokenizer


@pytest.fixture
def source(tmp_path):
    return str(tiny_images(tmp_path / "images.npz", num_images=20))


def projection(**changes):
    return RandomProjectionTokenizer(**{"patch_size": 4, "in_chans": 3, "vocabulary": 32} | changes)


def test_ids_are_those_of_each_image(source, tmp_path):
    dataset = open_source(source, "all")
    result = write_ids(projection(), dataset, tmp_path / "ids.npz", batch_size=7)
    stored = np.load(tmp_path / "ids.npz")
    assert stored["ids"].shape == (20, 4, 4)
    assert stored["ids"].dtype == np.uint16
    assert stored["names"].tolist() == dataset.names
    assert stored["labels"].tolist() == dataset.labels.tolist()
    for index in (0, 7, 19):
        image = torch.from_numpy(dataset.read(index)).float()[None] / 255
        assert stored["ids"][index].ravel().tolist() == projection()(image)[0].tolist()
    assert result.usage.positions == 20 * 16
    assert result.usage.used == len(np.unique(stored["ids"]))


def test_what_is_there_is_kept_and_nothing_else_taken_for_it(source, tmp_path):
    dataset, path = open_source(source, "all"), tmp_path / "ids.npz"
    fresh = write_ids(projection(), dataset, path)
    before = path.stat().st_mtime_ns
    found = write_ids(projection(), open_source(source, "all"), path)
    assert (fresh.fresh, found.fresh, path.stat().st_mtime_ns) == (True, False, before)
    assert np.array_equal(found.ids, fresh.ids)
    assert found.usage == fresh.usage
    for change, tokenizer, split, size in (
        ("tokenizer", projection(seed=1), "all", None),
        ("tokenizer", projection(standardised=True), "all", None),
        ("data", projection(), "train", None),
        ("transform", projection(), "all", (8, 8)),
    ):
        with pytest.raises(ValueError, match=f"was made with another {change}\\. Write to another"):
            write_ids(tokenizer, open_source(source, split), path, image_size=size)
    assert path.stat().st_mtime_ns == before


def test_other_pixels_under_the_same_names_are_other_data(source, tmp_path):
    before = ids_key(projection(), open_source(source, "all"), (16, 16))["data"]
    content = dict(np.load(source))
    content["images"][3, 0, 0, 0] ^= 1
    np.savez(source, **content)
    assert ids_key(projection(), open_source(source, "all"), (16, 16))["data"]["identity"] != before["identity"]


def test_weights_of_a_discrete_auto_encoder_are_in_the_key(source):
    keys = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        networks = DVAENetworks(DVAESizes(vocabulary=8, width=8, code_width=4, blocks=1, stride=4))
        tokenizer = DVAETokenizer(networks.encoder, networks.decoder)
        keys.append(ids_key(tokenizer, open_source(source, "all"), (16, 16))["tokenizer"]["sha256"])
    assert keys[0] == keys[1] != keys[2]


def test_cells_that_do_not_fit_say_what_does(source, tmp_path):
    with pytest.raises(ValueError, match=r"got 16x16 "):
        write_ids(projection(patch_size=12), open_source(source, "all"), tmp_path / "ids.npz")
    with pytest.raises(ValueError, match=r"got 16x16 "):
        write_ids(projection(patch_size=32), open_source(source, "all"), tmp_path / "ids.npz")
    assert not (tmp_path / "ids.npz").exists()


def test_images_of_other_channels(source, tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer must take the channels of the images; got one for 1, .* has 3"):
        write_ids(projection(in_chans=1), open_source(source, "all"), tmp_path / "ids.npz")


def test_images_of_several_sizes_need_one(tmp_path):
    from PIL import Image

    folder = tmp_path / "mixed"
    folder.mkdir()
    for index, side in enumerate((16, 20, 24)):
        Image.new("RGB", (side, side), (index * 40, 0, 0)).save(folder / f"{index}.png")
    dataset = open_source(str(folder), "all")
    with pytest.raises(ValueError, match=r"image_size must be given .* Give height"):
        write_ids(projection(), dataset, tmp_path / "ids.npz")
    assert write_ids(projection(), dataset, tmp_path / "ids.npz", image_size=(8, 12)).ids.shape == (3, 2, 3)


def test_a_file_of_something_else_is_left_alone(source, tmp_path):
    with pytest.raises(ValueError, match="wrote; got"):
        write_ids(projection(), open_source(source, "all"), tmp_path / "images.npz")
    assert "images" in np.load(source)
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        write_ids(projection(), open_source(source, "all"), tmp_path / "ids.parquet")


def test_a_report_is_of_a_tokenizer(tmp_path):
    (tmp_path / "config.yaml").write_text(to_yaml(prepare("mae_micro_mnist").config))
    with pytest.raises(ValueError, match="run must be one of `pantomim tokenizer train`; got"):
        write_tokenizer_report(tmp_path)
