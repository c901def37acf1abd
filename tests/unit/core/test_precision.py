"""The precision of frozen networks."""

from collections.abc import Iterator

import pytest
import torch
from tiny import ENCODER

from pantomim.core.precision import tf32
from pantomim.nn.vqkd import VQKDSizes, vqkd_networks
from pantomim.teachers.choice import TeacherConfig
from pantomim.tokenizers.random_projection import RandomProjectionTokenizer
from pantomim.tokenizers.vqkd import VQKDTokenizer

FROZEN = {
    "teacher": TeacherConfig("random").build(ENCODER.build()),
    "teacher in float32": TeacherConfig("random", precision="float32").build(ENCODER.build()),
    "random projection": RandomProjectionTokenizer(4, vocabulary=5),
    "vqkd": VQKDTokenizer(vqkd_networks(VQKDSizes(ENCODER, 5, 4))),
}


def allowed() -> bool:
    return torch.backends.cuda.matmul.allow_tf32


@pytest.fixture(params=[False, True])
def before(request: pytest.FixtureRequest) -> Iterator[bool]:
    torch.backends.cuda.matmul.allow_tf32 = request.param
    yield request.param
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_parts_in_float32_may_round_to_tf32_and_nothing_else(
    name: str, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = torch.backends.cuda.matmul.fp32_precision
    inside, linear, product = [], torch.nn.functional.linear, torch.Tensor.__matmul__
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *x: inside.append(allowed()) or linear(*x))
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda *x: inside.append(allowed()) or product(*x))
    FROZEN[name](torch.rand(2, 3, 16, 16))
    assert set(inside) == {before or name != "teacher"}
    assert (allowed(), torch.backends.cuda.matmul.fp32_precision) == (before, state)


def test_the_setting_comes_back_after_an_error(before: bool) -> None:
    with pytest.raises(ValueError, match="channels"), tf32():
        FROZEN["random projection"](torch.rand(2, 1, 16, 16))
    assert allowed() == before


def test_around_a_compiled_network_too() -> None:
    teacher, inside = FROZEN["teacher in float32"], []
    teacher._compiled_call_impl = lambda *given, **named: inside.append(allowed())
    teacher(torch.rand(2, 3, 16, 16))
    teacher._compiled_call_impl = None
    assert inside == [True]
