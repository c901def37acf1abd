"""A tokenizer learned from a teacher, as a user trains and uses it."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from tiny import CAE_ENCODER, tiny_images, tiny_run

from pantomim.cli import main
from pantomim.engine.pretrain import pretrain
from pantomim.engine.record import read_metrics
from pantomim.formats.native import load_networks
from pantomim.masking.block import BlockMasker
from pantomim.methods.cae import CAEConfig
from pantomim.nn.decoder import LatentDecoderConfig
from pantomim.nn.regressor import RegressorConfig
from pantomim.targets.tokens import TokenTargetConfig
from pantomim.tokenizers import load_tokenizer
from pantomim.tokenizers.resized import on_grid

pytest.importorskip("vector_quantize_pytorch")

SMALL = ["--size", "micro", "--method.vocabulary", "16", "--method.encoder.width", "16", "--method.encoder.depth", "2"]
QUIET = ["--runtime.tracker", "none", "--runtime.device", "cpu", "--runtime.threads", "1"]


def said(capsys):
    captured = capsys.readouterr()
    return " ".join((captured.err + captured.out).split())


@pytest.mark.slow
def test_from_a_teacher_to_ids(tmp_path, capsys):
    source = tiny_images(tmp_path / "tiny.npz")
    pretrain(tiny_run(source, steps=3), tmp_path / "teacher")
    heads = ["--method.encoder.heads", "2", "--method.encoder.patch-size", "4"]

    def train(out, *more):
        given = ["--teacher", str(tmp_path / "teacher"), "--data", str(source), "--out", str(out), "--steps", "6"]
        main(["tokenizer", "train", *given, *SMALL, *heads, *QUIET, "--batch-size", "16", "--keep", "5", *more])

    run = tmp_path / "run"
    train(run, "--runtime.save-every", "3")
    assert "of 16 codes used, perplexity" in said(capsys)
    whole = read_metrics(run / "metrics.jsonl")
    assert {"cosine", "commitment", "perplexity"} <= set(whole[0])
    weights = (run / "tokenizer.safetensors").read_bytes()
    report = json.loads((run / "tokenizer_report.json").read_text())
    assert report["mse"] is None
    assert not (run / "tokenizer_report.png").exists()
    kept = (run / "checkpoints" / "step-00000003" / "checkpoint.json").read_text()
    assert list(json.loads(kept)["frozen"]) == ["teacher"]

    for name in ("finished.json", "tokenizer.safetensors", "tokenizer.json"):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    train(run, "--runtime.save-every", "3")
    assert [line["loss"] for line in read_metrics(run / "metrics.jsonl")] == [line["loss"] for line in whole]
    assert (run / "tokenizer.safetensors").read_bytes() == weights

    tokenizer = load_tokenizer(run)
    images = torch.rand(2, 3, 16, 16)
    ids = tokenizer(images)
    assert (ids.shape, tokenizer.vocabulary) == ((2, 16), 16)
    assert torch.equal(ids, load_networks(run)(images))
    with pytest.raises(ValueError, match="codes stand for a teacher's features"):
        tokenizer.decode(ids, (4, 4))
    larger = on_grid(tokenizer, (32, 32), (4, 4))
    assert larger(torch.rand(2, 3, 32, 32)).shape == (2, 16)
    with pytest.raises(ValueError, match=r"8 x 8; got 4 x 4\. Train one for this grid"):
        on_grid(tokenizer, (16, 16), (8, 8))

    capsys.readouterr()
    out = tmp_path / "ids.npz"
    main(["tokenizer", "encode", "--tokenizer", str(run), "--data", str(source), "--out", str(out)])
    assert "80 x 4 x 4 ids written to" in said(capsys)
    cae = CAEConfig(
        encoder=CAE_ENCODER,
        regressor=RegressorConfig(depth=1),
        decoder=LatentDecoderConfig(depth=1),
        masker=BlockMasker(ratio=0.5),
        target=TokenTargetConfig(tokenizer=str(run)),
    )
    pretrain(replace(tiny_run(source, steps=3), method=cae), tmp_path / "cae")
    assert "accuracy" in read_metrics(tmp_path / "cae" / "metrics.jsonl")[0]


def test_mistakes(tmp_path, capsys):
    source = tiny_images(tmp_path / "tiny.npz")
    given = ["--data", str(source), "--out", str(tmp_path / "run"), *QUIET, "--steps", "2"]
    for words, expected in (
        (["vqkd", *given], "--teacher must be given"),
        (["dvae", "--teacher", "random", *given], "--teacher must be left out for a method without that part"),
        (["vqkd", "--size", "paper", "--teacher", "random", *given], "--size must be one of micro"),
        (
            ["vqkd", "--teacher", "random", "--size", "micro", "--runtime.accumulation", "2", *given],
            "--runtime.accumulation must be 1 for vqkd, whose loss of an image depends on all others of its step",
        ),
        (["dvae", "--size", "tiny", *given], "--size must be one of micro, small, base, paper for dvae"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["tokenizer", "train", *words])
        assert ended.value.code == 2
        assert expected in said(capsys)
