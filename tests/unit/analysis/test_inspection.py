"""Encoders looked into block by block: ours and timm's the same, which images, which files, and the commands."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from markupsafe import escape
from tiny import ENCODER, tiny_images, tiny_run

from pantomim.analysis import LAYERS, cka, inspection
from pantomim.analysis.attention_distance import attention_distance, patch_distances
from pantomim.analysis.block_facts import BlockFacts, read_block_facts, write_block_facts
from pantomim.analysis.blocks import block_features
from pantomim.analysis.runs import held_out
from pantomim.analysis.spectrum import concentration
from pantomim.cli import main
from pantomim.config import to_yaml
from pantomim.core.scales import scale_of
from pantomim.data.stream import evaluation_batches
from pantomim.formats.hf import HFEncoder
from pantomim.formats.native import load_encoder_folder, save_encoder
from pantomim.formats.timm import TimmEncoder, as_encoder
from pantomim.report.folder import read_run
from pantomim.report.inspection import caption, panels
from pantomim.report.page import make_report


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_images(tmp_path_factory.mktemp("data") / "tiny.npz", num_images=105)


def write_run(folder, source, seed=0, **data):
    """A folder with what an inspection reads."""
    torch.manual_seed(seed)
    folder.mkdir()
    encoder = ENCODER.build()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=1.0)  # far from uniform attention
    save_encoder(folder, encoder, scale=scale_of("uint8"), recipe="tiny")
    config = tiny_run(source)
    (folder / "config.yaml").write_text(to_yaml(replace(config, data=replace(config.data, **data))))
    return folder


@pytest.fixture
def runs(tmp_path, source):
    return [write_run(tmp_path / name, source, seed) for seed, name in enumerate(["first", "second"])]


def test_a_wrapped_vision_transformer_gives_the_same():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, num_classes=0)
    ours = as_encoder(model, "timm:vit")
    wrapped = TimmEncoder(model, "timm:vit", ours.image_size, ours.config.mean, ours.config.std, lambda: model).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        expected = list(block_features(ours, images, need_attention=True))
        found = list(block_features(wrapped, images, need_attention=True))
        plain = list(block_features(wrapped, images))
    assert len(found) == len(expected) == 3
    for own, theirs, without in zip(expected, found, plain, strict=True):
        assert torch.allclose(own.prefix, theirs.prefix, atol=1e-5)
        assert torch.allclose(own.patches, theirs.patches, atol=1e-5)
        assert torch.allclose(own.attention, theirs.attention, atol=1e-6)
        assert torch.allclose(own.patches, without.patches, atol=1e-5)
        assert without.attention is None
    assert not any(module._forward_hooks for module in model.modules())
    assert all(block.attn.fused_attn == timm.layers.use_fused_attn() for block in model.blocks)


def test_attention_of_a_network_of_transformers():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    encoder = HFEncoder(model, "hf:vit", (16, 16), (0.5,) * 3, (0.5,) * 3).eval()
    images = torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        plain = list(block_features(encoder, images))
        found = list(block_features(encoder, images, need_attention=True))
        model.set_attn_implementation("eager")
        expected = model(pixel_values=(images - 0.5) / 0.5, output_attentions=True)
    for number, (own, without) in enumerate(zip(found, plain, strict=True)):
        assert torch.allclose(own.attention, expected.attentions[number], atol=1e-6)
        assert torch.allclose(own.patches, without.patches, atol=1e-5)


def test_a_network_without_blocks_is_refused():
    model = timm.create_model("resnet10t", num_classes=0)
    wrapped = TimmEncoder(model, "timm:resnet10t", (32, 32), (0.5,) * 3, (0.5,) * 3, lambda: model).eval()
    with pytest.raises(ValueError, match=r"got timm:resnet10t, of which only the last features"):
        list(block_features(wrapped, torch.rand(1, 3, 32, 32)))


def test_numbers_are_means_over_held_out_images(runs):
    """Twenty-one images are no whole number of batches: each image still counts once."""
    far = LAYERS["attention-distance"](tuple(map(str, runs[:1])), count=100).run()
    few = LAYERS["spectrum"](tuple(map(str, runs[:1])), count=100).run()
    encoder, dataset = load_encoder_folder(runs[0]), held_out(far.about["source"])
    assert far.about["split"] == "test"
    assert far.about["images"] == len(dataset) == 21
    distances = patch_distances((4, 4), (4, 4))
    apart, shares = [], []
    with torch.inference_mode():
        for images, _ in evaluation_batches(dataset, (16, 16), 5, "cpu"):
            blocks = list(block_features(encoder, images, need_attention=True))
            apart.append(torch.stack([attention_distance(b.attention, distances, 1).distance for b in blocks], dim=1))
            shares.append(torch.stack([concentration(b.patches) for b in blocks], dim=1))
    assert np.allclose(far.of("distance", 0), torch.cat(apart).mean(dim=0), rtol=1e-5)
    assert np.allclose(few.of("shares", 0), torch.cat(shares).mean(dim=0), rtol=1e-5)
    assert far.of("distance", 0).std() > 0.1
    headings, rows = LAYERS["spectrum"].table(few)
    assert headings == ["block", "first: share of the k largest, k = 1 ... 5"]
    assert [row[0] for row in rows] == ["1", "2"]


@pytest.mark.parametrize(
    ("holdout", "named", "words"),
    [
        (0.2, False, "21 images of tiny of the fixed 20 % that pre-training did not see, drawn"),
        (0.0, False, "21 images of tiny of the fixed 20 % that pre-training saw as well, drawn"),
        (0.2, True, "105 images of tiny, drawn"),
    ],
)
def test_which_images_were_looked_at(tmp_path, source, holdout, named, words):
    """Those that are named, all of them; of a run's own those that lie apart, whether or not it trained on them."""
    with np.load(source) as arrays:
        np.savez(tmp_path / "tiny.npz", images=arrays["images"])
    run = write_run(tmp_path / "run", tmp_path / "tiny.npz", holdout=holdout)
    images = str(tmp_path / "tiny.npz") if named else None
    assert words in caption(LAYERS["spectrum"]((str(run),), images, count=1000).run())


def test_cka_of_one_and_of_two_encoders(runs):
    found = LAYERS["cka"](tuple(map(str, runs)), count=12).run()
    assert found.arrays["cka"].shape == (4, 4)
    assert np.allclose(np.diagonal(found.arrays["cka"]), 1)
    assert found.between(0, 1).max() < 0.9
    assert np.array_equal(found.between(0, 1), found.between(1, 0).T)
    alone = LAYERS["cka"](tuple(map(str, runs[1:])), count=12).run()
    assert np.allclose(alone.of("cka", 0), found.of("cka", 1))
    assert [panel.title for panel in panels(found)] == ["first and second", "first", "second"]
    assert len(LAYERS["cka"].table(found)[1]) == 2
    assert (found.about["images"], found.about["left_out"]) == (12, 0)
    assert "left out" not in caption(found)


def test_cka_compares_images_of_all_classes_at_once(runs, monkeypatch):
    """Images lie by class: batches of one class would hide what classes have in common."""
    monkeypatch.setattr(cka, "BATCH", 6)
    batches, read = [], inspection.Images.batches
    monkeypatch.setattr(
        inspection.Images, "batches", lambda images, encoder: batches.append(images) or read(images, encoder)
    )
    LAYERS["cka"](tuple(map(str, runs[:1])), count=12).run()
    assert all(len(set(shown.dataset.labels[shown.indices])) > 1 for shown in batches)


def test_cka_states_how_many_images_are_in_it(runs, monkeypatch):
    monkeypatch.setattr(cka, "BATCH", 5)
    found = LAYERS["cka"](tuple(map(str, runs)), count=12).run()
    assert (found.about["images"], found.about["left_out"]) == (10, 2)
    assert "batches of 5, 10 " in caption(found)
    assert "2 more fill no batch and are left out" in caption(found)


def test_files_in_every_run_folder_and_beside_the_page(runs, tmp_path):
    found = LAYERS["attention-distance"](tuple(map(str, runs)), count=4).run()
    written = write_block_facts(found, tmp_path / "page.html")
    own = [run / "analysis" / "attention-distance.npz" for run in runs]
    assert written == [*own, tmp_path / "page.npz"]
    for number, path in enumerate(own):
        alone = read_block_facts(path)
        assert alone.names == [runs[number].name]
        assert np.array_equal(alone.of("distance", 0), found.of("distance", number))
    assert read_block_facts(written[2]).names == ["first", "second"]
    with np.load(own[0]) as file:
        assert json.loads(str(file["about"]))["images"] == 4


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK no")
    with pytest.raises(ValueError, match=r"a\.npz must be a file that `pantomim inspect` wrote"):
        read_block_facts(tmp_path / "a.npz")
    facts = BlockFacts(
        "spectrum", {"shares_0": np.ones((2, 5))}, {"encoders": [{"name": "x", "depth": 3, "spec": "X"}]}
    )
    facts.about["analysis"] = "spectrum"
    write_block_facts(facts, tmp_path / "b.html")
    with pytest.raises(ValueError, match=r"'shares_0': 2} layers, where it states"):
        read_block_facts(tmp_path / "b.npz")


@pytest.mark.parametrize("kind", ["attention-distance", "spectrum", "cka"])
def test_the_command(runs, tmp_path, capsys, kind):
    main(["inspect", kind, str(runs[0]), "--count", "5"])
    assert (runs[0] / "analysis" / f"{kind}.html").read_text().count('<svg class="chart"') == 1
    main(["inspect", kind, *map(str, runs), "--count", "5", "--out", str(tmp_path / "both.html")])
    assert (tmp_path / "both.html").read_text().count('<svg class="chart"') == (3 if kind == "cka" else 2)
    found = read_block_facts(tmp_path / "both.npz")
    assert escape(LAYERS[kind].finding(found)) in (tmp_path / "both.html").read_text()
    assert "Page:" in capsys.readouterr().out
    assert make_report(runs[0]).read_text().count('<svg class="chart"') == 1
    assert not read_run(runs[0]).problems


def test_the_report_warns_that_other_weights_were_measured(runs, tmp_path):
    write_block_facts(LAYERS["spectrum"](tuple(map(str, runs[:1])), count=4).run(), tmp_path / "page.html")
    assert "Inside the encoder" in (page := make_report(runs[0]).read_text())
    assert "Inspect again" not in page
    torch.manual_seed(9)
    save_encoder(runs[0], ENCODER.build(), scale=scale_of("uint8"), recipe="tiny")
    assert "spectrum.npz was measured with other weights" in make_report(runs[0]).read_text()


def test_what_the_command_refuses(runs, source, capsys):
    file = str(runs[0] / "encoder.safetensors")
    for arguments, message in [
        (["spectrum", file], "--out must be given where the first encoder is no run folder"),
        (["spectrum", file, "--out", "x.html"], "--images must be given"),
        (["spectrum", str(runs[0]), "--out", "x.png"], "must end in .html"),
        (["cka", str(runs[0]), "--count", "3"], "--count must be at least 4"),
        (["cka"], "must name at least one run folder"),
    ]:
        with pytest.raises(SystemExit):
            main(["inspect", *arguments])
        assert message in " ".join(capsys.readouterr().err.split())
