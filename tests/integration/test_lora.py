"""LoRA in whole runs: pre-training and both tasks, with copies of the encoder; killed, resumed, exported."""

from dataclasses import replace

import pytest
import torch
from killed import Killed, kill_after
from masked_images import masked_arrays
from safetensors.torch import load_file
from tiny import DECODER, ENCODER, tiny_images, tiny_run

from pantomim.config import DataConfig, Lora, MaskConfig, Validation
from pantomim.data.mask_crops import MaskCrop
from pantomim.engine.pretrain import pretrain
from pantomim.formats import load_encoder
from pantomim.formats.native import save_encoder
from pantomim.masking.attention import AttentionMasker
from pantomim.methods.beit import BEiTConfig
from pantomim.methods.cmt_mae import CMTMAEConfig
from pantomim.methods.dbot import DBOTConfig
from pantomim.methods.mae import MAEConfig
from pantomim.methods.segment import SegmentConfig
from pantomim.methods.supervised import SupervisedConfig
from pantomim.nn.segmenter import LinearHeadConfig
from pantomim.targets.features import FeatureTargetConfig
from pantomim.teachers.choice import TeacherConfig

STUDENT = {"encoder": ENCODER, "decoder": DECODER}
EMA = TeacherConfig("ema", momentum=0.9)
LAYERS = {f"blocks.{i}.attn.{name}.weight" for i in (0, 1) for name in ("qkv", "proj")}
METHODS = {
    "mae": MAEConfig(**STUDENT),
    "dbot": DBOTConfig(**STUDENT, teacher=EMA),
    "data2vec": BEiTConfig(encoder=ENCODER, target=FeatureTargetConfig(teacher=EMA)),
    "cmt_mae": CMTMAEConfig(**STUDENT, masker=AttentionMasker(rule="topk_masked"), teacher=TeacherConfig("random")),
    "supervised": SupervisedConfig(encoder=ENCODER, num_classes=4, pool="mean", learn_positions=True, ema=0.5),
    "segment": SegmentConfig(encoder=replace(ENCODER, image_size=(32, 32)), num_classes=3, head=LinearHeadConfig()),
}


def run_of(name, folder):
    method, rest = METHODS[name], {}
    source = masked_arrays(folder / "m.npz") if name == "segment" else tiny_images(folder / "i.npz")
    torch.manual_seed(0)
    start = method.encoder.build()
    save_encoder(folder, start, scale={"rule": "uint8: 255 becomes 1", "divisor": 255.0}, recipe="first")
    run = tiny_run(source, steps=6, batch_size=8, optim={"layer_decay": 0.75, "base_lr": 0.3})
    if name in ("supervised", "segment"):
        rest["validation"] = Validation(0.25, every=2)
    if name == "segment":
        crop = MaskCrop(base=(160, 40), ratio=(0.75, 1.5), distortion=None, fill=method.encoder.mean)
        rest["data"] = DataConfig(str(source), masks=MaskConfig(crop=crop))
    run = replace(run, runtime=replace(run.runtime, save_every=2), **rest)
    optim = replace(run.optim, lora=Lora(rank=2))
    return replace(run, method=method, optim=optim, init=str(folder)), start.state_dict()


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_resumes_to_the_same_bits_and_exports_merged_weights(name, tmp_path, monkeypatch):
    run, before = run_of(name, tmp_path)
    pretrain(run, tmp_path / "whole")
    with monkeypatch.context() as patched:
        kill_after(3, patched)
        with pytest.raises(Killed):
            pretrain(run, tmp_path / "cut")
    pretrain(run, tmp_path / "cut")
    parts = [path.name for path in (tmp_path / "whole").glob("*.safetensors")]
    assert "encoder.safetensors" in parts
    for part in parts:
        assert (tmp_path / "whole" / part).read_bytes() == (tmp_path / "cut" / part).read_bytes(), part
        assert not any("lora" in key for key in load_file(tmp_path / "whole" / part))
    after = load_encoder(tmp_path / "whole").state_dict()  # which knows nothing of LoRA
    assert after.keys() == before.keys()
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert {key for key in changed if not key.startswith("norm.")} == LAYERS
    (saved,) = sorted((tmp_path / "whole" / "checkpoints").glob("step-*"))[-1:]
    stored = load_file(saved / "weights.safetensors")
    of = "model.encoder." if name in ("supervised", "segment") else "encoder."
    for key in LAYERS:
        update = [stored[of + key.replace("weight", f"lora_{letter}")] for letter in "ba"]
        assert torch.equal(stored[of + key], before[key])  # apart
        if name not in ("supervised", "segment"):  # where the best step is exported
            assert torch.equal(after[key], before[key] + 4.0 * (update[0] @ update[1]))


@pytest.mark.parametrize("limit", ["lora.rank", "freeze_blocks"])
def test_without_weights_there_is_nothing_to_keep(tmp_path, limit):
    run, _ = run_of("mae", tmp_path)
    if limit == "freeze_blocks":
        run = replace(run, optim=replace(run.optim, lora=Lora(), freeze_blocks=2))
    with pytest.raises(ValueError, match=rf"Pretrain\.init must name weights .* with optim\.{limit} 2"):
        replace(run, init=None)
