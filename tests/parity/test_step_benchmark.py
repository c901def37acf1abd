"""What the benchmark of steps counts: all matrix products of a step, those of networks in inference mode too."""

import pytest
import torch
from benchmark_scripts import benchmark
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def step():
    """The benchmark as a module."""
    return benchmark("step")


def test_operations_of_guided_steps_are_those_that_torch_counts(step) -> None:
    config, _ = step.SIZES["micro"]
    setting = step.Setting(torch.device("cpu"), bf16=False, compiled=False)
    counted = {}
    for name, way in {"MAE": config, **step.guided_ways(config)}.items():
        method = way.build(step.RUN_STEPS)
        generator, batch = step.batch_on(setting.device, config, 2, 0)
        counter = FlopCounterMode(display=False)
        with sdpa_kernel(SDPBackend.MATH):  # plain products: torch does not count the CPU's fused attention
            counted[name] = step.products_of(method, batch, step.STEP, generator, setting).flops()
            with counter:
                method(batch, method.draw(batch, step.STEP, generator))["loss"].backward()
        assert counted[name] == counter.get_total_flops()
    assert counted["MAE"] < counted["CMT-MAE, teacher alone"] < counted["CMT-MAE"]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_guided_step_moves_the_copy_and_is_compared_with_mae(step, compiled, monkeypatch) -> None:
    config, _ = step.SIZES["micro"]
    whole = []  # compiled with its guides, as in a run
    monkeypatch.setattr(step, "compile_whole", whole.append)
    setting = step.Setting(torch.device("cpu"), bf16=False, compiled=compiled)
    method = step.guided_ways(config)["CMT-MAE"].build(step.RUN_STEPS)
    generator, batch = step.batch_on(setting.device, config, 2, 0)
    before = method.ema_student.encoder.blocks[0].mlp.fc1.weight.clone()
    mae = step.Contender("MAE", lambda: None, 2)
    guided = step.guided_contender("CMT-MAE", method, batch, generator, setting, 6)
    step.measure([mae, guided], 2, setting)
    assert whole == [method] * compiled
    assert not torch.equal(method.ema_student.encoder.blocks[0].mlp.fc1.weight, before)
    results = step.summary([mae, guided], len(batch))
    assert results["CMT-MAE"]["flops_over_ours"] == 3
    assert "operations / MAE" in step.table(results, "MAE")
