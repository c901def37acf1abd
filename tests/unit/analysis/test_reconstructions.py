import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import tiny_images, tiny_run

from pantomim.analysis.reconstructions import Reconstruct, reconstruct
from pantomim.analysis.runs import choose, held_out, load_run
from pantomim.analysis.views import write_rows_of
from pantomim.config import to_yaml
from pantomim.data.sources import open_source
from pantomim.formats.native import save_decoder, save_encoder
from pantomim.targets.pixels import PixelTargetConfig


def finished_run(folder, source, normalize=True, **encoder):
    """What a run leaves behind, with random weights."""
    config = tiny_run(source)
    method = replace(
        config.method,
        encoder=replace(config.method.encoder, **encoder),
        target=PixelTargetConfig(normalise="patch" if normalize else "none"),
    )
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(replace(config, method=method)))
    torch.manual_seed(0)
    model = method.build()
    save_encoder(folder, model.encoder, scale=open_source(str(source)).scale, recipe="tiny")
    save_decoder(folder, model.decoder)
    return folder


@pytest.fixture
def run(tmp_path):
    return finished_run(tmp_path / "run", tiny_images(tmp_path / "images.npz"))


def per_pixel(mask):
    return np.kron(mask, np.ones((4, 4), dtype=bool))[:, None]


@pytest.mark.parametrize("normalize", [True, False])
def test_visible_patches_are_the_image_and_masked_ones_the_prediction(tmp_path, normalize):
    source = tiny_images(tmp_path / "images.npz")
    method = load_run(finished_run(tmp_path / "run", source, normalize), "mae")
    images = torch.rand(5, 3, 16, 16)
    result = reconstruct(method, images, seed=3)
    masked = np.broadcast_to(per_pixel(result.mask), images.shape)
    assert (result.mask.sum(axis=(1, 2)) == 12).all()
    np.testing.assert_allclose(result.original, images.numpy())
    np.testing.assert_array_equal(result.masked[~masked], result.original[~masked])
    np.testing.assert_allclose(result.masked[masked], 0.5)  # the encoder's mean
    np.testing.assert_allclose(result.pasted[~masked], result.original[~masked], atol=1e-5)
    np.testing.assert_array_equal(result.pasted[masked], result.reconstruction[masked])
    assert not np.allclose(result.reconstruction[~masked], result.original[~masked], atol=1e-2)


def test_a_perfect_decoder_gives_the_image_back_and_explains_all(run, monkeypatch):
    method = load_run(run, "mae")
    images = torch.rand(2, 3, 16, 16)
    monkeypatch.setattr(method.decoder, "forward", lambda latent, mask, everywhere: method.target(images))
    result = reconstruct(method, images, seed=0)
    np.testing.assert_allclose(result.reconstruction, images.numpy(), atol=1e-5)
    assert result.explained == 1.0


def test_normalised_predictions_take_mean_and_std_of_the_true_patch(run, monkeypatch):
    method = load_run(run, "mae")
    images = torch.rand(2, 3, 16, 16)
    monkeypatch.setattr(method.decoder, "forward", lambda *_, everywhere: torch.zeros(2, 16, 48))
    result = reconstruct(method, images, seed=0)
    cells = images.reshape(2, 3, 4, 4, 4, 4).mean(dim=(1, 3, 5))  # over channels, as the target normalises
    np.testing.assert_allclose(result.reconstruction[:, 0, ::4, ::4], cells.numpy(), atol=1e-5)
    assert result.explained == pytest.approx(0.0, abs=1e-6)


def test_the_same_seed_masks_the_same_patches_and_nothing_is_left_changed(run):
    method = load_run(run, "mae").train()
    images = torch.rand(4, 3, 16, 16)
    state = torch.random.get_rng_state()
    first, second, other = (reconstruct(method, images, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.pasted, second.pasted)
    assert (first.mask != other.mask).any()
    assert method.training
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_file_holds_pictures_values_and_what_they_are(run):
    path = write_rows_of(Reconstruct, run, count=6)
    assert path == run / "analysis" / "reconstructions.npz"
    assert [file.name for file in path.parent.iterdir()] == ["reconstructions.npz"]
    with np.load(path) as arrays:
        about = json.loads(str(arrays["about"]))
        for name in ("original", "masked", "reconstruction", "pasted"):
            assert arrays[name].shape == (6, 16, 16, 3)
            assert arrays[name].dtype == np.uint8
        assert arrays["mask"].shape == (6, 4, 4)
        np.testing.assert_array_equal(
            arrays["original"], (arrays["original_values"].transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)
        )
    assert about["split"] == "test"
    assert about["masked_share"] == 0.75
    assert "of the test split" in about["caption"]
    assert "75 % of the patches are masked" in about["caption"]
    assert "taken from the true patch" in about["caption"]


def test_pictures_come_from_images_that_training_does_not_see(tmp_path):
    images = np.arange(50, dtype=np.uint8)[:, None, None].repeat(16, 1).repeat(16, 2)
    np.savez(tmp_path / "plain.npz", images=images)
    source = tmp_path / "plain.npz"
    run = finished_run(tmp_path / "run", source, in_chans=1, mean=(0.5,), std=(0.3,))
    with np.load(write_rows_of(Reconstruct, run, count=100)) as arrays:
        shown = set(arrays["original"][:, 0, 0, 0].tolist())
        about = json.loads(str(arrays["about"]))
    train = open_source(str(source), "train")
    assert len(shown) == 10
    assert shown.isdisjoint({int(train.read(index).flat[0]) for index in range(len(train))})
    assert "fixed 20 %" in about["caption"]


@pytest.mark.parametrize(("parts", "expected"), [(("train", "val", "test"), "test"), (("train", "val"), "val")])
def test_test_comes_before_val(tmp_path, parts, expected):
    np.savez(tmp_path / "x.npz", images=np.zeros((12, 8, 8), dtype=np.uint8), split=np.resize(np.array(parts), 12))
    assert held_out(str(tmp_path / "x.npz")).split == expected


def test_reflectances_are_stretched_and_bands_named(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(-50, 4000, (40, 5, 16, 16)).astype(np.int16)
    np.savez(tmp_path / "bands.npz", images=images)
    run = finished_run(tmp_path / "run", tmp_path / "bands.npz", in_chans=5, mean=(0.2,) * 5, std=(0.1,) * 5)
    with np.load(write_rows_of(Reconstruct, run)) as arrays:
        about = json.loads(str(arrays["about"]))
        assert arrays["original_values"].shape[1] == 5
        shown = arrays["original"]
    assert shown.min() == 0
    assert shown.max() == 255
    assert "Bands 1, 2, 3 of 5 shown" in about["caption"]
    assert "Contrast stretched" in about["caption"]


def test_the_choice_takes_classes_in_turn(tmp_path):
    dataset = open_source(str(tiny_images(tmp_path / "images.npz")), "test")
    chosen = choose(dataset, 6, seed=0)
    assert len(set(chosen.tolist())) == 6
    assert sorted(np.bincount(dataset.labels[chosen]).tolist()) == [1, 1, 2, 2]
    assert (choose(dataset, 6, seed=0) == chosen).all()
    assert (choose(dataset, 6, seed=1) != chosen).any()


def test_an_unfinished_run_is_refused(run):
    (run / "decoder.json").unlink()
    with pytest.raises(ValueError, match=r"no decoder\.json"):
        write_rows_of(Reconstruct, run)
