import pytest
import torch
from compiled_forwards import CASES
from torch import Tensor, nn

from pantomim.core.batch import Batch
from pantomim.nn.attention import NOWHERE, Places
from pantomim.nn.blocks import Block, StreamBlock, stream_in_bfloat16


@pytest.mark.parametrize("images", [1, 2])  # whose places are the same, or each image's own
@pytest.mark.parametrize("kind", ["nowhere", "bias", "table", "rope"])
def test_a_block_can_compute_some_tokens_alone(kind: str, images: int) -> None:
    torch.manual_seed(0)
    block = Block(8, 2, relative_rows=5 * (kind == "table")).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    tokens = torch.rand(2, 6, 8, dtype=torch.float64, requires_grad=True)
    bias, rope = (torch.randn(images, *shape, dtype=torch.float64) for shape in ((2, 6, 6), (6, 8)))
    places = {
        "nowhere": NOWHERE,
        "bias": Places(bias.requires_grad_()),
        "table": Places(rows=torch.randint(5, (images, 6, 6))),
        "rope": Places(rope=rope),
    }[kind]
    only = torch.tensor([[1, 4], [5, 0]])
    some, some_weights = block(tokens, need_weights=True, only=only, places=places)
    every, weights = block(tokens, need_weights=True, places=places)
    expected = torch.stack([every[i, ids] for i, ids in enumerate(only)])
    expected_weights = torch.stack([weights[i][:, ids] for i, ids in enumerate(only)])
    torch.testing.assert_close(some, expected)
    torch.testing.assert_close(some_weights, expected_weights)
    inputs = [tokens, *block.parameters(), *([bias] if kind == "bias" else [])]
    weighting = torch.rand_like(some)
    got = torch.autograd.grad((some * weighting).sum(), inputs)
    for ours, theirs in zip(got, torch.autograd.grad((expected * weighting).sum(), inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_drop_path_drops_whole_images_in_training_only() -> None:
    torch.manual_seed(0)
    block = Block(8, 2, drop_path=0.5)
    tokens = torch.rand(64, 3, 8)
    kept = (block(tokens)[0] != tokens).flatten(1).any(dim=1)
    assert 0 < kept.sum() < 64
    block.eval()
    assert (block(tokens)[0] != tokens).flatten(1).any(dim=1).all()


def test_layer_scale_multiplies_both_branches() -> None:
    torch.manual_seed(0)
    plain, scaled = Block(8, 2).double(), Block(8, 2, layer_scale=0.5).double()
    scaled.load_state_dict(plain.state_dict() | {f"gamma_{i}": scaled.get_parameter(f"gamma_{i}") for i in (1, 2)})
    tokens = torch.rand(2, 3, 8, dtype=torch.float64)
    after = tokens + plain.attn(plain.norm1(tokens))[0] / 2
    torch.testing.assert_close(scaled(tokens)[0], after + plain.mlp(plain.norm2(after)) / 2)


@pytest.mark.parametrize("name", ["mae", "beit", "cae", "milan"])
def test_the_stream_stays_in_bfloat16_under_autocast_where_asked_for(name: str) -> None:
    torch.manual_seed(0)
    method = CASES[name].build(10).eval()
    batch = Batch(torch.rand(4, 3, 16, 16), total=4)
    draws = method.draw(batch, 0, torch.Generator().manual_seed(0))
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}

    def note(block: StreamBlock, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
        tokens = output if isinstance(output, Tensor) else output[0]
        seen[next(block.parameters()).requires_grad].add(tokens.dtype)

    for block in (part for part in method.modules() if isinstance(part, StreamBlock)):
        block.register_forward_hook(note)
    with torch.autocast("cpu", torch.bfloat16):
        expected = method(batch, draws)["loss"]
        assert torch.float32 in seen[True]
        stream_in_bfloat16(method)
        seen[True].clear()
        torch.testing.assert_close(method(batch, draws)["loss"], expected, rtol=0.02, atol=0)
    assert seen[True] == {torch.bfloat16}
    assert seen[False] <= {torch.float32}  # a teacher's
    seen[True].clear()
    method(batch, draws)
    assert seen[True] == {torch.float32}
