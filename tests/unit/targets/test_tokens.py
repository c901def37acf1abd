import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pantomim.nn.tokens import take
from pantomim.nn.vit import EncoderConfig
from pantomim.targets import tokens
from pantomim.targets.tokens import TokenTarget, TokenTargetConfig
from pantomim.tokenizers.random_projection import RandomProjectionTokenizer

ENCODER = EncoderConfig(image_size=(8, 12), patch_size=4, width=16, depth=1, heads=2).build()


class Brightness(nn.Module):
    """Ids by the brightness of cells of four pixels; another answer in training mode, as a bad tokenizer would give."""

    def __init__(self) -> None:
        super().__init__()
        self.vocabulary = 10
        self.scale = nn.Parameter(torch.tensor(9.0))

    def grid_of(self, image_size):
        return image_size[0] // 4, image_size[1] // 4

    def forward(self, images):
        assert not self.training
        return (F.avg_pool2d(images.mean(dim=1), 4) * self.scale).long().flatten(1)


def test_ids_of_patches_without_gradient_or_training() -> None:
    target = TokenTarget(Brightness())
    holder = nn.ModuleList([target]).train()
    assert holder.training
    assert not any(module.training for module in target.modules())
    assert not any(parameter.requires_grad for parameter in target.parameters())
    images = torch.rand(2, 3, 8, 12, requires_grad=True)
    ids = target(images)
    assert ids.shape == (2, 6)
    assert ids.dtype == torch.int64
    assert target.dim == 10


def test_a_random_projection_needs_no_file() -> None:
    target = TokenTargetConfig(tokenizer="random-projection:3", vocabulary=32).build(ENCODER)
    images = torch.rand(2, 3, 8, 12)
    ids = target(images)
    assert target.dim == 32
    assert ids.shape == (2, 6)
    changed = images.clone()
    changed[:, :, 4:, 8:] = 1 - changed[:, :, 4:, 8:]
    assert torch.equal(target(changed)[:, :5], ids[:, :5])  # raster order: the last patch is the last id


def test_there_is_no_tokenizer_by_default() -> None:
    with pytest.raises(ValueError, match=r"tokenizer must be given.*dalle:FILE.*random-projection"):
        TokenTargetConfig().build(ENCODER)


def test_another_vocabulary_than_the_tokenizers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "load_tokenizer", lambda *_, **__: RandomProjectionTokenizer(4, vocabulary=12))
    with pytest.raises(ValueError, match=r"vocabulary must be the tokenizer's, 12; got 8192"):
        TokenTargetConfig(tokenizer="somewhere", vocabulary=8192).build(ENCODER)


def test_a_prediction_is_scored_by_the_tokens_of_its_patches() -> None:
    target, images = TokenTarget(Brightness()), torch.rand(2, 3, 8, 12)
    torch.manual_seed(0)
    prediction, ids = torch.randn(2, 2, 10), torch.tensor([[0, 5], [3, 1]])
    chosen = torch.stack([target(images)[row, ids[row]] for row in range(2)])
    assert torch.equal(take(target(images), ids), chosen)
    expected = F.cross_entropy(prediction.flatten(0, 1), chosen.flatten())
    torch.testing.assert_close(target.loss(prediction, chosen), expected)
    accuracy = (prediction.argmax(-1) == chosen).float().mean()
    torch.testing.assert_close(target.metrics(prediction, chosen), {"accuracy": accuracy})


def test_loss_is_pooled_over_the_batch_and_padding_does_not_count() -> None:
    torch.manual_seed(0)
    prediction, ids = torch.randn(2, 3, 7), torch.randint(7, (2, 3))
    ids[0, 0] = prediction[0, 0].argmax()
    weight = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    kept = weight.bool()
    target = TokenTarget(Brightness())
    loss, accuracy = target.loss(prediction, ids, weight), target.metrics(prediction, ids, weight)["accuracy"]
    torch.testing.assert_close(loss, F.cross_entropy(prediction[kept], ids[kept]))
    torch.testing.assert_close(accuracy, (prediction.argmax(-1) == ids)[kept].float().mean())
    assert accuracy >= 0.25
    torch.testing.assert_close(target.loss(prediction, ids), F.cross_entropy(prediction.flatten(0, 1), ids.flatten()))


@pytest.mark.parametrize(("dtype", "found"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_half_precision_is_promoted(dtype: torch.dtype, found: torch.dtype) -> None:
    target, given = TokenTarget(Brightness()), (torch.randn(2, 3, 7, dtype=dtype), torch.randint(7, (2, 3)))
    assert target.loss(*given).dtype == target.metrics(*given)["accuracy"].dtype == found
