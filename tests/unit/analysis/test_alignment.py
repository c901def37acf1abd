"""Pictures without the regressor: what is decoded, how it is scored, from which files, and the page."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import tiny_images, tiny_run

from pantomim.analysis.alignment import Alignment, without_regressor
from pantomim.analysis.runs import load_run
from pantomim.cli import main
from pantomim.config import to_yaml
from pantomim.formats.native import save_encoder, save_predictor
from pantomim.masking.random import RandomMasker
from pantomim.methods.cae import CAEConfig, cae_encoder
from pantomim.nn.decoder import LatentDecoderConfig
from pantomim.nn.regressor import RegressorConfig
from pantomim.nn.tokens import patchify, unpatchify
from pantomim.targets.pixels import PixelTargetConfig
from pantomim.targets.tokens import TokenTarget, TokenTargetConfig

CONFIG = CAEConfig(
    encoder=replace(cae_encoder("base"), image_size=(16, 16), patch_size=4, width=16, depth=1, heads=2),
    regressor=RegressorConfig(depth=1),
    decoder=LatentDecoderConfig(depth=1),
    masker=RandomMasker(ratio=0.5),
    target=PixelTargetConfig(),
)


class Brightness:
    """The id of a patch is how bright it is; ids are decoded at half the size."""

    vocabulary = 5

    def grid_of(self, image_size):
        return image_size[0] // 4, image_size[1] // 4

    def __call__(self, images):
        return (patchify(images, 4).mean(dim=-1) * self.vocabulary).long().clamp(0, self.vocabulary - 1)

    def decode(self, ids, grid):
        values = (ids.float() / self.vocabulary).unsqueeze(-1).expand(-1, -1, 2 * 2 * 3)
        return unpatchify(values, 2, grid)


def build(**changes):
    torch.manual_seed(0)
    return replace(CONFIG, **changes).build()


def images_of(count=3):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def answering(method, monkeypatch, answer):
    monkeypatch.setattr(method, "without_regressor", lambda images: answer)
    return method


@pytest.mark.parametrize("normalise", ["none", "patch", "layer", "channel"])
def test_pixels_are_the_output_of_the_decoder(normalise):
    method, images = build(target=PixelTargetConfig(normalise=normalise)).train(), images_of()
    result = without_regressor(method, images)
    assert method.training, "the mode is given back"
    latents = method.eval().encoder(images).patches
    tokens = latents + method.decoder.position
    for block in method.decoder.blocks:
        tokens, _ = block(tokens)
    output = method.decoder.head(method.decoder.norm(tokens))
    expected = method.target.to_images(output, images).detach().numpy()
    np.testing.assert_allclose(result.shown, expected, rtol=1e-5, atol=1e-5)
    assert (result.reference is None) == (normalise == "none")
    if result.reference is not None:
        assert not np.allclose(result.reference, result.shown, atol=1e-3)


@pytest.mark.parametrize(("share", "score"), [(1.0, 1.0), (0.0, 0.0), (0.5, 0.75), (-1.0, -3.0)])
def test_the_score_of_pixels(monkeypatch, share, score):
    method, images = build(), images_of()
    truth = method.target(images)
    mean = truth.mean(dim=(0, 1))
    result = without_regressor(answering(method, monkeypatch, mean + share * (truth - mean)), images)
    assert result.measure == "explained"
    assert result.score == pytest.approx(score, abs=1e-4)
    if share == 1.0:
        np.testing.assert_allclose(result.shown, images.numpy(), atol=1e-4)


def test_tokens_are_decoded_and_counted(monkeypatch):
    images = images_of()
    method = CONFIG.build(target=TokenTarget(Brightness()))
    truth = Brightness()(images)
    ids = truth.clone()
    ids[:, :4] = (ids[:, :4] + 1) % 5  # the first of four rows is wrong
    output = torch.nn.functional.one_hot(ids, 5).float()
    result = without_regressor(answering(method, monkeypatch, output), images)
    assert result.measure == "accuracy"
    assert result.score == pytest.approx(0.75)
    assert result.shown.shape == images.shape
    np.testing.assert_allclose(result.shown[:, :, 4:], result.reference[:, :, 4:])
    assert (result.shown[:, :, :4] != result.reference[:, :, :4]).all()
    assert result.reference_name == f"the true ids, decoded ({len(truth.unique())} of 5 codes occur)"
    assert result.usage.used == len(truth.unique())


def test_tokens_without_a_decoder_are_refused():
    config = replace(CONFIG, target=TokenTargetConfig(tokenizer="random-projection", vocabulary=8))
    with pytest.raises(ValueError, match="got tokens of RandomProjectionTokenizer, which has no decoder"):
        without_regressor(config.build(), images_of())


def write_run(path, source, **changes):
    """The folder of a run that ended with an untrained method."""
    config = replace(tiny_run(source), method=replace(CONFIG, **changes))
    torch.manual_seed(3)
    method = config.method.build()
    save_encoder(path, method.encoder, scale={"divisor": 255.0}, recipe="tiny")
    save_predictor(path, method.exports()["predictor"], method="cae")
    (path / "config.yaml").write_text(to_yaml(config))
    return method


@pytest.fixture
def source(tmp_path):
    return tiny_images(tmp_path / "tiny.npz")


@pytest.mark.parametrize("momentum", [None, 0.5])
def test_a_run_is_read_from_its_folder(tmp_path, source, momentum):
    method = write_run(tmp_path / "run", source, align_momentum=momentum)
    loaded = load_run(tmp_path / "run", "cae")
    assert not loaded.training
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in method.state_dict().items())


def test_runs_side_by_side(tmp_path, source):
    write_run(tmp_path / "with", source)
    write_run(tmp_path / "without", source, align_weight=0.0)
    (found,) = Alignment((str(tmp_path / "with"), str(tmp_path / "without")), count=3, seed=1).run()
    assert [row.title for row in found.rows] == [
        "images",
        "mean and std of each true patch alone, which are given",
        "with",
        "without",
    ]
    assert "alignment weight 2; " in found.rows[2].text
    assert "no alignment; " in found.rows[3].text
    assert "% of the target's variation explained" in found.rows[3].text
    assert len(found.items) == 3
    assert {row.pictures.shape for row in found.rows} == {(3, 16, 16, 3)}
    assert np.array_equal(found.rows[2].pictures, found.rows[3].pictures), "the same weights"
    method = load_run(tmp_path / "with", "cae")
    images = torch.from_numpy(found.rows[0].pictures).movedim(-1, 1) / 255.0
    shown = without_regressor(method, images).shown.clip(0, 1)
    np.testing.assert_allclose(found.rows[2].pictures / 255.0, shown.transpose(0, 2, 3, 1), atol=0.01)


def test_other_images_can_be_given(tmp_path, source):
    write_run(tmp_path / "run", source)
    other = tiny_images(tmp_path / "other.npz", num_images=10)
    (found,) = Alignment((str(tmp_path / "run"),), str(other), count=10).run()
    assert len(found.items) == 10
    assert "10 images of other" in found.caption


def test_what_is_no_run_of_cae_is_refused(tmp_path, source):
    with pytest.raises(ValueError, match=r"must be run folders; got .*nowhere, which has no config\.yaml"):
        load_run(tmp_path / "nowhere", "cae")
    (tmp_path / "config.yaml").write_text(to_yaml(tiny_run(source)))
    with pytest.raises(ValueError, match=r"must be runs of cae; got .* a run of mae"):
        load_run(tmp_path, "cae")
    (tmp_path / "config.yaml").write_text(to_yaml(replace(tiny_run(source), method=CONFIG)))
    with pytest.raises(ValueError, match=r"which has no encoder\.json"):
        load_run(tmp_path, "cae")


def test_runs_of_other_sizes_and_images_of_other_channels(tmp_path, source):
    write_run(tmp_path / "a", source)
    write_run(tmp_path / "b", source, encoder=replace(CONFIG.encoder, image_size=(8, 8)))
    with pytest.raises(ValueError, match="must take images of one size and number of channels"):
        Alignment((str(tmp_path / "a"), str(tmp_path / "b"))).run()
    gray = tiny_images(tmp_path / "gray.npz", channels=1)
    with pytest.raises(ValueError, match=r"got an encoder of 3 and .* of 1"):
        Alignment((str(tmp_path / "a"),), str(gray)).run()


def test_from_the_command_line(tmp_path, source, capsys):
    for name in ("with", "without"):
        write_run(tmp_path / name, source, align_weight=2.0 if name == "with" else 0.0)
    main(["inspect", "alignment", str(tmp_path / "with"), str(tmp_path / "without"), "--count", "2"])
    assert "no alignment; " in capsys.readouterr().out
    assert "no alignment; " in (tmp_path / "with" / "analysis" / "alignment-compared.html").read_text()


def test_no_run_is_told(capsys):
    with pytest.raises(SystemExit):
        main(["inspect", "alignment"])
    assert capsys.readouterr().err
