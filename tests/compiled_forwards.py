"""The compiled forward of every method beside the eager one; run in its own process, as shape checks do not compile.

Prints, for each case, an empty string or what went wrong, as JSON.
"""

import json
import sys
import traceback
from dataclasses import replace

import torch
from tiny import DECODER, ENCODER

from pantomim.core.batch import Batch
from pantomim.engine.runtime import autocast, compile_whole, generator
from pantomim.masking.block import BlockMasker
from pantomim.masking.grid import GridMasker
from pantomim.masking.multi_block import MultiBlockMasker
from pantomim.methods.beit import BEiTConfig, beit_encoder
from pantomim.methods.cae import CAEConfig, cae_encoder
from pantomim.methods.cmt_mae import CMTMAEConfig
from pantomim.methods.dbot import DBOTConfig
from pantomim.methods.dvae import DVAEConfig
from pantomim.methods.ijepa import IJEPAConfig, PredictorConfig
from pantomim.methods.mae import MAEConfig
from pantomim.methods.milan import MILANConfig
from pantomim.methods.mocov3 import MoCoV3Config, moco_encoder
from pantomim.methods.segment import SegmentConfig
from pantomim.methods.supervised import SupervisedConfig
from pantomim.methods.vqkd import VQKDConfig
from pantomim.nn.blocks import DropPath, drawing_for
from pantomim.nn.decoder import LatentDecoderConfig
from pantomim.nn.dvae import DVAESizes
from pantomim.nn.mlp import MlpConfig
from pantomim.nn.regressor import RegressorConfig
from pantomim.nn.rope import Rope
from pantomim.nn.vit import Norms
from pantomim.targets.distance import Distance
from pantomim.targets.features import FeatureTargetConfig
from pantomim.targets.hog import HOGTargetConfig
from pantomim.targets.pair import Concat
from pantomim.targets.pixels import PixelTargetConfig
from pantomim.targets.tokens import TokenTargetConfig
from pantomim.teachers.choice import TeacherConfig
from pantomim.teachers.mixing import Mixing

STEPS, CPU = 4, torch.device("cpu")
SIZES = {"image_size": (16, 16), "patch_size": 4, "width": 16, "depth": 2, "heads": 2}
DROPPING = {"encoder": replace(ENCODER, drop_path=0.2), "decoder": replace(DECODER, drop_path=0.2)}
PAIR = {"encoder": ENCODER, "decoder": DECODER, "teacher": TeacherConfig("random", output="norm")}

_beit_encoder = replace(beit_encoder("base"), **SIZES, drop_path=0.5)
mae = MAEConfig(encoder=ENCODER, decoder=DECODER)
beit = BEiTConfig(
    encoder=_beit_encoder,
    masker=BlockMasker(exact=False, min_area=2),  # the number of masked patches varies
    target=TokenTargetConfig(tokenizer="random-projection", vocabulary=32),
)
cae = CAEConfig(
    encoder=replace(cae_encoder("base", 0.5), **SIZES),
    regressor=RegressorConfig(depth=1),
    decoder=LatentDecoderConfig(depth=1),
    target=PixelTargetConfig(),
)
cosine = FeatureTargetConfig(teacher=TeacherConfig("random", depth=0), normalise="none", distance=Distance("cosine"))
supervised = SupervisedConfig(encoder=replace(ENCODER, drop_path=0.5, position="learned"), num_classes=5)
CASES = {
    "mae": mae,
    "mae, hog": replace(mae, target=HOGTargetConfig()),
    "mae, tokens": replace(mae, target=TokenTargetConfig(tokenizer="random-projection", vocabulary=8)),
    "mae, rotary and gated": replace(
        mae,
        encoder=replace(
            ENCODER,
            position="none",
            registers=1,
            rope=Rope(),
            mlp=MlpConfig("silu", gated=True, norm=True),
            norms=Norms(first=True, final=False),
            attention_bias="none",
            layer_scale=0.1,
        ),
    ),
    "beit": beit,
    "beit, tables of each block": replace(
        beit, encoder=replace(_beit_encoder, relative_position="blocks", position="learned")
    ),
    "beit, l1": replace(beit, target=PixelTargetConfig(normalise="none", distance=Distance("l1"))),
    "beit, ema": replace(
        beit,
        masker=GridMasker(),
        target=FeatureTargetConfig(teacher=TeacherConfig("ema", blocks=2, momentum=0.5)),
    ),
    "cae": cae,
    "cae, aligned without stochastic depth": replace(cae, align_drop_path=False),
    "cae, ema": replace(cae, align_momentum=0.9),
    "cae, features": replace(cae, target=cosine),
    "dbot": DBOTConfig(**DROPPING),
    "dbot, no block": DBOTConfig(**DROPPING, teacher=TeacherConfig("random", depth=0)),
    "dbot, ema": DBOTConfig(**DROPPING, teacher=TeacherConfig("ema", output="norm")),
    "cmt_mae": CMTMAEConfig(**PAIR, mixing=Mixing(warmup_share=0.5)),
    "cmt_mae, concat": CMTMAEConfig(**PAIR, mixing=Mixing(warmup_share=0.5), target=Concat(), pixel_weight=0.1),
    "milan": MILANConfig(**PAIR),
    "ijepa": IJEPAConfig(
        encoder=replace(ENCODER, image_size=(32, 32), class_token=False),
        predictor=PredictorConfig(8, 1),
        masker=MultiBlockMasker(min_keep=2),
    ),
    "mocov3": MoCoV3Config(encoder=replace(moco_encoder("base"), **SIZES), hidden=16, dim=8),
    "supervised": supervised,
    "supervised, mean": replace(supervised, pool="mean"),
    "segment": SegmentConfig(encoder=replace(ENCODER, image_size=(32, 32), depth=4, drop_path=0.5), num_classes=5),
    "dvae": DVAEConfig(
        sizes=DVAESizes(vocabulary=12, width=8, code_width=6, blocks=1, stride=4), image_size=(16, 16)
    ).annealed_over(20),
    "vqkd": VQKDConfig(
        encoder=replace(ENCODER, position="learned"), decoder_depth=1, vocabulary=6, code_width=4,
        teacher=TeacherConfig("random"),
    ),
}  # fmt: skip
FEW_GRAPHS = {"ijepa": 3}  # its lists have other lengths in each step: one graph for the first, then for all


def check(name: str) -> None:
    """One graph, at most two of each guide, no break, the eager loss to the bit, over steps and micro-batches."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    method = CASES[name].build(STEPS).train()
    # one function of torch calls all guides: a recompilation for each
    torch._dynamo.config.error_on_recompile = name not in FEW_GRAPHS and len(method.asked) < 2
    names, needs = list(method.state_dict()), method.requirements
    dropping = [part for part in method.modules() if isinstance(part, DropPath)]
    compile_whole(method, backend="eager")
    parts = (0,) if needs.whole_batch else (0, 4)
    for step in range(STEPS):
        for start in parts:
            images, second = torch.rand(2, 4, needs.in_chans, *needs.image_size)
            labels = torch.randint(5, (4,))
            masks = torch.randint(5, (4, *needs.image_size))
            batch = Batch(images, torch.arange(4), labels, start, 4 * len(parts), second, masks)
            draws = method.draw(batch, step, generator(0, step, CPU))
            losses = []
            for forward in (method, method.forward):
                torch.manual_seed(step)  # for stochastic depth
                with autocast(CPU, torch.bfloat16), drawing_for(dropping, batch):
                    losses.append(forward(batch, draws)["loss"])
            if name in FEW_GRAPHS:
                torch.testing.assert_close(*losses)
            else:
                assert torch.equal(*losses), losses
            assert losses[0].dtype == torch.float32
            losses[0].backward()
        method.update_ema(step)
    assert list(method.state_dict()) == names
    counts = torch._dynamo.utils.counters
    assert counts["stats"]["unique_graphs"] <= FEW_GRAPHS.get(name, 1) + 2 * len(method.asked), counts
    assert not counts["graph_break"], counts


def main() -> None:
    torch.set_num_threads(1)
    found = {}
    for name in CASES:
        try:
            check(name)
            found[name] = ""
        except Exception:
            found[name] = traceback.format_exc(limit=-3)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
