"""BEiT and CAE are trained by the engine like MAE: run folder, resume to the same bits, export, scores, going on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from killed import Killed, kill_after
from safetensors.torch import load_file
from tiny import BEIT_ENCODER, CAE_ENCODER, tiny_images, tiny_run

from pantomim.analysis.runs import load_run
from pantomim.cli import main
from pantomim.core.batch import Batch
from pantomim.engine.initial import start_from
from pantomim.engine.pretrain import pretrain
from pantomim.engine.record import read_metrics
from pantomim.evaluate.knn import KNN
from pantomim.formats import load_encoder
from pantomim.formats.native import save_tokenizer
from pantomim.masking.block import BlockMasker
from pantomim.methods.base import Method
from pantomim.methods.beit import BEiTConfig
from pantomim.methods.cae import CAEConfig
from pantomim.nn.decoder import LatentDecoderConfig
from pantomim.nn.dvae import DVAENetworks, DVAESizes
from pantomim.nn.regressor import RegressorConfig
from pantomim.targets.pixels import PixelTargetConfig
from pantomim.targets.tokens import TokenTargetConfig

TOKENS = TokenTargetConfig(tokenizer="random-projection-standardised", vocabulary=32)
METHODS = {
    "beit": BEiTConfig(encoder=BEIT_ENCODER, target=TOKENS, masker=BlockMasker(ratio=0.4, exact=False, min_area=2)),
    "cae": CAEConfig(
        encoder=CAE_ENCODER,
        regressor=RegressorConfig(depth=1),
        decoder=LatentDecoderConfig(depth=1),
        masker=BlockMasker(ratio=0.5),
        target=TOKENS,
        align_momentum=0.9,
    ),
}
OPTIM = {"schedule": "beit", "decay_tokens": False, "decay_mask_token": True, "clip_norm": 3.0}


def run(source, kind, **changes):
    return replace(tiny_run(source, optim=OPTIM | changes.pop("optim", {}), **changes), method=METHODS[kind])


@pytest.mark.parametrize("kind", METHODS)
def test_a_run_resumes_to_the_same_bits_and_is_scored(kind, tmp_path, monkeypatch):
    source = tiny_images(tmp_path / "images.npz")
    config = run(source, kind, steps=12, runtime={"save_every": 4, "log_every": 1})
    whole = tmp_path / "whole"
    pretrain(config, whole)
    metrics = read_metrics(whole / "metrics.jsonl")
    assert "accuracy" in metrics[0]
    assert ("loss_align" in metrics[0]) == (kind == "cae")

    with monkeypatch.context() as patch:
        kill_after(6, patch)
        with pytest.raises(Killed):
            pretrain(config, tmp_path / "cut")
    pretrain(config, tmp_path / "cut")
    assert [row["loss"] for row in read_metrics(tmp_path / "cut" / "metrics.jsonl")] == [row["loss"] for row in metrics]
    for name in ("encoder", "predictor"):
        file = f"{name}.safetensors"
        assert (whole / file).read_bytes() == (tmp_path / "cut" / file).read_bytes()

    _, result = KNN(encoder=str(whole), data=str(source)).to_file()
    assert 0 <= result["trained"]["top1"] <= 1

    again = load_run(whole)
    assert torch.equal(again.encoder.cls_token, load_encoder(whole).cls_token)
    outputs = again(Batch(torch.rand(2, 3, 16, 16), total=2), _draw(again))
    assert torch.isfinite(outputs["loss"])


def test_a_run_warns_of_tokens_that_say_nothing_and_draws_as_without_looking(tmp_path, capsys, monkeypatch):
    np.savez(tmp_path / "gray.npz", images=np.full((40, 16, 16, 3), 99, np.uint8))
    method = replace(METHODS["beit"], target=replace(TOKENS, tokenizer="random-projection"))
    config = replace(run(tmp_path / "gray.npz", "beit", steps=3), method=method)
    pretrain(config, tmp_path / "looked")
    said = " ".join(capsys.readouterr().err.split())
    assert "Warning: the tokenizer must spread images over its codes; got 1 of 32 codes used" in said
    assert "the most frequent one in 100.0% of 4096 cells" in said  # 256 images of 16 patches
    monkeypatch.setattr(Method, "check_data", lambda self, batches: None)
    pretrain(config, tmp_path / "blind")
    assert "tokenizer" not in capsys.readouterr().err
    first, second = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("looked", "blind"))
    assert [row["loss"] for row in first] == [row["loss"] for row in second]


def _draw(method):
    return method.draw(Batch(torch.rand(2, 3, 16, 16), total=2), 0, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", METHODS)
def test_a_run_begins_where_another_ended(kind, tmp_path):
    source = tiny_images(tmp_path / "images.npz")
    pretrain(run(source, kind, steps=3), tmp_path / "first")
    method = METHODS[kind].build()
    assert "what it predicts with is taken too" in start_from(str(tmp_path / "first"), method)
    first = load_run(tmp_path / "first")
    for name, weight in first.exports()["predictor"].items():
        assert torch.equal(weight, method.exports()["predictor"][name]), name
    if kind == "cae":  # the copy begins as the encoder
        pairs = zip(method.aligner.parameters(), first.encoder.parameters(), strict=True)
        assert all(torch.equal(copied, weight) for copied, weight in pairs)
    smaller = replace(METHODS[kind], target=PixelTargetConfig()).build()
    assert "is not taken" in start_from(str(tmp_path / "first"), smaller)


def small_tokenizer(folder, seed):
    torch.manual_seed(seed)
    sizes = DVAESizes(vocabulary=32, width=4, code_width=4, blocks=1, stride=4)
    save_tokenizer(folder, DVAENetworks(sizes), scale={}, recipe="tiny")


def test_a_vocabulary_that_is_asked_for_is_the_tokenizers(tmp_path):
    small_tokenizer(tmp_path / "tokenizer", 0)
    tokens = TokenTargetConfig(tokenizer=str(tmp_path / "tokenizer"))
    encoder = METHODS["cae"].encoder.build()
    assert tokens.build(encoder).dim == replace(tokens, vocabulary=32).build(encoder).dim == 32
    with pytest.raises(ValueError, match="must be the tokenizer's, 32; got 8192"):
        replace(tokens, vocabulary=8192).build(encoder)


def test_a_tokenizer_lies_in_no_checkpoint_and_must_stay_the_same(tmp_path, monkeypatch):
    source, folder = tiny_images(tmp_path / "images.npz"), tmp_path / "tokenizer"
    small_tokenizer(folder, 0)
    config = run(source, "cae", steps=6, runtime={"save_every": 2})
    config = replace(config, method=replace(config.method, target=TokenTargetConfig(tokenizer=str(folder))))
    with monkeypatch.context() as patch:
        kill_after(3, patch)
        with pytest.raises(Killed):
            pretrain(config, tmp_path / "run")
    kept = load_file(tmp_path / "run" / "checkpoints" / "step-00000002" / "weights.safetensors")
    assert not any(name.startswith("target.") for name in kept)
    small_tokenizer(folder, 1)
    with pytest.raises(ValueError, match=r"got another target\.tokenizer \(.* instead of .*Put the files back"):
        pretrain(config, tmp_path / "run")
    small_tokenizer(folder, 0)
    pretrain(config, tmp_path / "run")
    load_run(tmp_path / "run")
    small_tokenizer(folder, 1)
    with pytest.raises(ValueError, match=r"with the tokenizer that it was trained with; got another target"):
        load_run(tmp_path / "run")
    assert "learned beside another target.tokenizer" in start_from(str(tmp_path / "run"), config.method.build())


def test_no_tokenizer_no_run(tmp_path):
    source = tiny_images(tmp_path / "images.npz")
    config = run(source, "beit")
    config = replace(config, method=replace(config.method, target=TokenTargetConfig()))
    with pytest.raises(ValueError, match=r"tokenizer must be given.*pantomim tokenizer train"):
        pretrain(config, tmp_path / "run")


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.slow
def test_from_the_command_line(kind, tmp_path, capsys):
    source, out = tiny_images(tmp_path / "images.npz"), tmp_path / "run"
    command = [kind, "--data", str(source), "--size", "micro", "--method.encoder.depth", "1", "--steps", "30"]
    command += ["--batch-size", "8", "--runtime.tracker", "none", "--runtime.device", "cpu"]
    main(["explain", *command])
    assert "not counted: none is named yet" in capsys.readouterr().out
    main(["explain", *command, "--tokenizer", "random-projection:3"])
    assert "random-projection:3" in capsys.readouterr().out
    main(["pretrain", *command, "--target", "pixels", "--out", str(out)])
    main(["report", str(out)])
    assert "no new pictures" not in capsys.readouterr().err  # BEiT has none of its own, and says nothing
    assert (out / "report.html").is_file()


@pytest.mark.parametrize("target", ["pixels", "tokens"])
def test_the_report_of_a_cae_run_shows_the_alignment(tmp_path, target, capsys):
    source = tiny_images(tmp_path / "images.npz")
    small_tokenizer(tmp_path / "tokenizer", 0)
    chosen = PixelTargetConfig() if target == "pixels" else TokenTargetConfig(tokenizer=str(tmp_path / "tokenizer"))
    config = run(source, "cae", steps=3)
    pretrain(replace(config, method=replace(config.method, target=chosen)), tmp_path / "run")
    main(["report", str(tmp_path / "run")])
    assert "no new pictures" not in capsys.readouterr().err
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What the decoder reads without the regressor" in page
    assert "alignment weight 2" in page
    section = page.partition('<section aria-labelledby="alignment">')[2].partition("</section>")[0]
    assert section.count('<div class="view"') == 3  # images; what is there in any case, or at best; the run's
    assert section.count("<img") >= 24
    assert "No reconstructions yet" not in page
