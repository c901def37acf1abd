"""A tokenizer is trained by the engine like any method: run folder, resume, export."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import tiny_images, tiny_run

from pantomim.checkpoint import Progress, find_checkpoint, load_checkpoint, save_checkpoint
from pantomim.config import Duration
from pantomim.core.batch import Batch
from pantomim.engine.pretrain import pretrain
from pantomim.engine.record import read_metrics
from pantomim.engine.runtime import generator
from pantomim.methods.dvae import DVAEConfig
from pantomim.nn.dvae import DVAESizes
from pantomim.optim import parameter_groups
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


def test_going_on_from_a_checkpoint_is_bitwise_the_same(tmp_path):
    config = DVAEConfig(sizes=SIZES, image_size=(16, 16), momentum=0.5).annealed_over(6)

    def begin(seed):
        torch.manual_seed(seed)
        method = config.build()
        groups = parameter_groups(method, 1e-4)
        return method, torch.optim.AdamW(groups, lr=1e-2, fused=True)

    def go_on(method, optimizer, start, stop):
        losses = []
        for step in range(start, stop):
            images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(step))
            given = Batch(images, total=4)
            outputs = method(given, method.draw(given, step, generator(0, step, torch.device("cpu"))))
            outputs["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            method.update_ema(step)
            losses.append(outputs["loss"].item())
        return losses

    whole, other = begin(0), begin(0)
    losses = go_on(*whole, 0, 6)
    go_on(*other, 0, 3)
    save_checkpoint(tmp_path, *other, step=3, seed=0, progress=Progress(), keep=1)
    resumed = begin(1)
    load_checkpoint(find_checkpoint(tmp_path), *resumed)
    assert go_on(*resumed, 3, 6) == losses[3:]
    for name, tensor in whole[0].state_dict().items():
        assert torch.equal(tensor, resumed[0].state_dict()[name]), name
