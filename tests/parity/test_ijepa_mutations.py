"""I-JEPA's items notice: one thing is wrong at a time, and an item must fail."""

from pathlib import Path

import pytest
import torch

from pantomim.masking import multi_block
from pantomim.methods import ijepa
from pantomim.nn import momentum
from pantomim.parity.verification import verify_item

GOLDEN = Path(__file__).parent / "golden"


def fails(name: str) -> None:
    result = verify_item(GOLDEN / f"{name}.json")
    assert result.status == "FAIL"
    assert result.compared > 0 or "is asked for" in result.worst, result.worst  # found by comparing, or by the replay


def positions_before(honest):
    return lambda self, context, ids_context, ids_target: honest(self, context, ids_context * 0, ids_target)


@pytest.mark.parametrize(
    ("module", "name", "wrong"),
    [
        (ijepa, "TARGET_EPS", 1e-6),
        (ijepa, "at_least_float32", lambda values: values.float().double()),
        (ijepa.Predictor, "forward", positions_before(ijepa.Predictor.forward)),
    ],
    ids=["eps", "rounded", "places"],
)
def test_one_step(monkeypatch, module, name, wrong):
    monkeypatch.setattr(module, name, wrong)
    fails("ijepa_pretrain_a")


def test_momentum_a_step_early(monkeypatch):
    honest = momentum.EMA.__init__
    monkeypatch.setattr(momentum.EMA, "__init__", lambda self, *args, lead=1, **kwargs: honest(self, *args, **kwargs))
    fails("trajectory_ijepa_a")


def test_rates_without_the_lead(monkeypatch):
    from pantomim.engine import training

    monkeypatch.setattr(training.Training, "_place", lambda self, step: step)
    fails("trajectory_ijepa_a")


def test_last_row_within_reach(monkeypatch):
    honest = multi_block._block
    monkeypatch.setattr(
        multi_block, "_block", lambda grid, size, numbers: honest((grid[0] + 1, grid[1] + 1), size, numbers)
    )
    fails("ijepa_masks_a")


def test_area_and_aspect_from_two_numbers(monkeypatch):
    honest = multi_block._size
    monkeypatch.setattr(
        multi_block, "_size", lambda grid, u, scale, aspect: honest(grid, u, scale, (aspect[1], aspect[0]))
    )
    fails("ijepa_masks_a")


def test_as_it_is_it_passes():
    assert torch.get_default_dtype() == torch.float32
    assert verify_item(GOLDEN / "ijepa_pretrain_a.json").status == "PASS"
