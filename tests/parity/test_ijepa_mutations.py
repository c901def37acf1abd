"""I-JEPA's items notice: one thing is wrong at a time, and an item must fail."""

import pytest
from golden_items import failing, mutations, outcome

from pantomim.engine.training import Training
from pantomim.masking import multi_block
from pantomim.methods import ijepa
from pantomim.nn.momentum import EMA

PRETRAIN, MASKS, TRAJECTORY = "ijepa_pretrain_a", "ijepa_masks_a", "trajectory_ijepa_a"
predict, begin, block, size = ijepa.Predictor.forward, EMA.__init__, multi_block._block, multi_block._size


@mutations(
    eps=(PRETRAIN, ijepa, "TARGET_EPS", 1e-6),
    rounded=(PRETRAIN, ijepa, "at_least_float32", lambda values: values.float().double()),
    places=(
        PRETRAIN,
        ijepa.Predictor,
        "forward",
        lambda self, context, ids_context, ids_target: predict(self, context, ids_context * 0, ids_target),
    ),
    last_row_within_reach=(
        MASKS,
        multi_block,
        "_block",
        lambda grid, size, numbers: block((grid[0] + 1, grid[1] + 1), size, numbers),
    ),
    aspect_upside_down=(
        MASKS,
        multi_block,
        "_size",
        lambda grid, u, scale, aspect: size(grid, u, scale, (aspect[1], aspect[0])),
    ),
)
def test_one_thing_wrong(monkeypatch, item, owner, name, wrong):
    monkeypatch.setattr(owner, name, wrong)
    result = outcome(item)
    assert result.status == "FAIL"
    assert result.compared > 0 or "is asked for" in result.worst, result.worst  # found by comparing, or by the replay


@pytest.mark.slow
@mutations(
    momentum_a_step_early=(
        TRAJECTORY,
        EMA,
        "__init__",
        lambda self, *args, lead=1, **named: begin(self, *args, **named),
    ),
    rates_without_the_lead=(TRAJECTORY, Training, "_place", lambda self, step: step),
)
def test_one_thing_wrong_in_a_run(monkeypatch, item, owner, name, wrong):
    monkeypatch.setattr(owner, name, wrong)
    failing(item)
