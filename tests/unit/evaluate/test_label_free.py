"""Figures without labels, for encoders of ours and of other libraries, and what is said where labels are missing."""

import json
import re

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny import tiny_images, tiny_run

from pantomim.cli import main
from pantomim.core.spread import effective_rank, uniformity
from pantomim.data.sources import open_source
from pantomim.engine.pretrain import pretrain
from pantomim.evaluate.features import extract
from pantomim.evaluate.label_free import LabelFree
from pantomim.formats import load_encoder
from pantomim.report.page import make_report


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with np.load(tiny_images(folder / "divided.npz")) as arrays:
        np.savez(folder / "bare.npz", images=arrays["images"])
    return folder / "bare.npz"


@pytest.fixture(scope="module")
def run(source):
    pretrain(tiny_run(source, steps=4), out := source.with_name("run"))
    return out


def test_figures_and_page_of_a_run_without_labels(source, run, capsys):
    main(["evaluate", "label_free", "--encoder", str(run), "--data", str(source)])
    assert "label-free on bare, 16 images:\n  trained, mean of patches: rankme" in capsys.readouterr().out
    found = json.loads((run / "eval" / "label-free-bare.json").read_text())
    table = extract(load_encoder(run), open_source(str(source), "test"))
    assert found["trained"]["rankme"] == effective_rank(table.views["mean"])
    assert found["trained"]["class"]["uniformity"] == uniformity(table.views["class"])
    assert 0 < found["trained"]["alignment"] < 4
    assert found["untrained"] != found["trained"]
    assert LabelFree(str(run), str(source)).to_file()[1]["trained"] == found["trained"]
    page = make_report(run).read_text()
    assert "Features of 16 images of bare" in page
    assert f"{found['trained']['rankme']:.3g}" in page
    assert "No evaluation yet" not in page


def test_a_network_of_timm_and_fewer_images(source, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224")
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    encoder = f"timm:vit_tiny_patch16_224@{tmp_path / 'weights.safetensors'}"
    how = {"image_size": (32, 32), "test_images": 12, "out": tmp_path / "found.json"}
    _, found = LabelFree(encoder, str(source), **how).to_file()
    assert found["data"]["num_test"] == 12
    assert 1 < found["trained"]["rankme"] <= 12


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["knn"], r"must have labels; got none .*`evaluate label_free`"),
        (["label_free", "--contenders", "pixels"], r"contenders must be trained or untrained"),
        (["label_free", "--test-images", "5"], r"must have at least 8 images beside those of pre-training; got 5"),
    ],
)
def test_what_cannot_be_scored_is_told_with_what_can(words, said, source, run, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", *words, "--encoder", str(run), "--data", str(source)])
    assert re.search(said, capsys.readouterr().err, re.DOTALL)
