"""A tokenizer is trained by the engine like any method: run folder, resume, export."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import tiny_images, tiny_run

from pantomim.config import Duration
from pantomim.engine.pretrain import pretrain
from pantomim.engine.record import read_metrics
from pantomim.methods.dvae import DVAEConfig
from pantomim.nn.dvae import DVAESizes
from pantomim.tokenizers import load_tokenizer

SIZES = DVAESizes(vocabulary=16, width=8, code_width=6, blocks=1, stride=4)


def run(source, steps=12, **changes):
    method = DVAEConfig(sizes=SIZES, image_size=(16, 16), momentum=0.5).annealed_over(12)
    optim = {"base_lr": 0.05, "betas": (0.9, 0.999), "warmup": Duration(steps=0)}
    return replace(tiny_run(source, steps=steps, optim=optim, **changes), method=method)


def test_training_and_its_tokenizer(tmp_path):
    source = tiny_images(tmp_path / "images.npz")
    pretrain(run(source), tmp_path / "run")
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert {"nll", "kl", "mse", "perplexity", "temperature", "kl_weight"} <= set(metrics[0])
    assert metrics[-1]["nll"] < metrics[0]["nll"]
    assert metrics[0]["temperature"] == pytest.approx(1)
    tokenizer = load_tokenizer(tmp_path / "run")
    images = torch.rand(2, 3, 16, 16)
    ids = tokenizer(images)
    assert (ids.shape, tokenizer.vocabulary) == ((2, 16), 16)
    assert tokenizer.decode(ids, (4, 4)).shape == images.shape
    description = json.loads((tmp_path / "run" / "tokenizer.json").read_text())
    assert description["sizes"]["stride"] == 4
    assert not (tmp_path / "run" / "encoder.safetensors").exists()


def test_images_that_do_not_fit(tmp_path):
    source = tiny_images(tmp_path / "images.npz", channels=1)
    with pytest.raises(ValueError, match=r"method\.sizes\.in_chans must be the channels .* Set it to 1"):
        pretrain(run(source), tmp_path / "run")


def test_no_encoder_to_start_from(tmp_path):
    source = tiny_images(tmp_path / "images.npz")
    with pytest.raises(ValueError, match=r"Pretrain\.init must be left out for a method without an encoder"):
        pretrain(replace(run(source), init="somewhere"), tmp_path / "run")
