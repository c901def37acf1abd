import sys
from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch.nn import functional as F

from pantomim.core.scores import count_pixels, intersection_over_union
from pantomim.nn import segmenter as module
from pantomim.nn.segmenter import (
    DPTConfig,
    HeadConfig,
    LinearHeadConfig,
    Segmenter,
    UPerNetConfig,
    pixel_loss,
    segmented,
)
from pantomim.nn.tokens import enlarge
from pantomim.nn.vit import EncoderConfig
from pantomim.nn.windows import sliding_logits

ENCODER = EncoderConfig(image_size=(32, 32), patch_size=4, width=24, depth=4, heads=2, relative_position="blocks")
LINEAR, UPERNET, DPT = LinearHeadConfig(), UPerNetConfig(channels=16, auxiliary_channels=8), DPTConfig(channels=8)


def segmenter(head, num_classes=3, **encoder):
    if head.kind == "dpt":
        pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    return Segmenter(replace(ENCODER, **encoder).build(), num_classes, head)


def scenes(count=8):
    """A bright box and a dark one on a mid background, with noise; some pixels have no class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(count, 32, 32, dtype=torch.long)
    for image in labels:
        for value in (1, 2):
            top, left = (int(torch.randint(0, end, (), generator=generator)) * 4 for end in (5, 5))
            image[top : top + 16, left : left + 16] = value
    images = torch.tensor([0.5, 0.9, 0.1])[labels][:, None].repeat(1, 3, 1, 1)
    images += 0.05 * torch.randn(images.shape, generator=generator)
    labels[:, :1] = 255
    return images, labels


@pytest.mark.parametrize(("head", "steps"), [(LINEAR, 40), (UPERNET, 120), (DPT, 60)], ids=["linear", "upernet", "dpt"])
def test_every_head_learns_a_few_images_by_heart(head, steps):
    model, (images, labels) = segmenter(head), scenes()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        pixel_loss(model(images), labels)[0].backward()
        optimizer.step()
    with torch.no_grad():
        guesses = enlarge(model.eval()(images), labels.shape[1:]).argmax(dim=1)
    miou = intersection_over_union(count_pixels(guesses, labels, 3).sum(dim=0)).nanmean()
    assert miou > 0.95


@pytest.mark.parametrize(("head", "size"), [(LINEAR, (8, 8)), (UPERNET, (8, 8)), (DPT, (16, 16))], ids=str)
def test_logits_have_the_resolution_of_the_head(head, size):
    model = segmenter(head, num_classes=5)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 5, *size)


def test_the_linear_head_reads_normed_tokens_of_the_last_block():
    model, images = segmenter(LINEAR).eval(), torch.rand(2, 3, 32, 32)
    weight, bias = model.head.conv_seg.weight.flatten(1), model.head.conv_seg.bias
    expected = F.linear(model.encoder(images).patches, weight, bias)
    torch.testing.assert_close(model(images).flatten(2).mT, expected)


@pytest.mark.parametrize("head", [UPERNET, DPT], ids=lambda head: head.kind)
def test_taps_are_outputs_of_blocks_without_a_norm(head):
    model, images = segmenter(head, depth=6).eval(), torch.rand(2, 3, 32, 32)
    assert not any(name.startswith("encoder.norm") for name, _ in model.named_parameters())
    blocks = list(model.encoder.each_block(images))
    for tap, block in zip(model.tap(images), (1, 2, 3, 5), strict=True):
        assert torch.equal(tap.patches, blocks[block].patches)


@pytest.mark.parametrize(("class_token", "reads"), [(True, True), (False, False)])
def test_dpt_reads_the_class_token_where_there_is_one(class_token, reads):
    pytest.importorskip("segmentation_models_pytorch")
    model = segmenter(DPT, class_token=class_token).eval()
    taps = model.tap(torch.rand(1, 3, 32, 32))
    moved = [tap._replace(prefix=tap.prefix + 1) for tap in taps]
    before, after = (model.head(model.neck(each)) for each in (taps, moved))
    assert torch.equal(before, after) != reads


def test_the_loss_is_divided_by_all_pixels():
    logits, (_, labels) = torch.randn(8, 3, 8, 8), scenes()
    mean = F.cross_entropy(enlarge(logits, (32, 32)), labels, ignore_index=255)
    torch.testing.assert_close(pixel_loss(logits, labels)[0], mean * 31 / 32)
    assert pixel_loss(logits, torch.full_like(labels, 7), ignore=7) == (0, 0), "torch's mean would be NaN"


def test_vit_base_has_as_many_parameters_as_beit_v2_states():
    with torch.device("meta"):
        model = Segmenter(EncoderConfig(image_size=(512, 512)).build(), 150, UPerNetConfig())
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == 163


def test_dpt_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch.decoders.dpt.decoder", None)
    with pytest.raises(ValueError, match=r"pip install 'pantomim\[dpt\]'"):
        Segmenter(ENCODER.build(), 3, DPT)


def test_dpt_on_a_grid_that_does_not_halve():
    with pytest.raises(ValueError, match=r"multiples of 8; got 8 x 9"):
        segmenter(DPT, image_size=(32, 36))


def test_a_head_is_read_by_its_kind():
    read = TypeAdapter(HeadConfig).validate_python
    assert read({"kind": "upernet", "channels": 64}) == UPerNetConfig(channels=64)
    for wrong in ({"kind": "unet"}, {"kind": "linear", "channels": 3}, {"kind": "dpt", "channels": 0}):
        with pytest.raises(ValidationError):
            read(wrong)


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_whole_images_are_segmented_by_windows_at_the_size_of_their_masks(monkeypatch, at_once):
    model, images = segmenter(LINEAR, num_classes=5).eval(), torch.rand(2, 3, 40, 50)
    torch.nn.init.normal_(model.head.conv_seg.weight)
    monkeypatch.setattr(module, "MAX_LOGITS", at_once * 2 * 70 * 90)
    with torch.no_grad():
        logits = sliding_logits(model, images, 5, (32, 32), (21, 21), model.encoder.mean.flatten())
    found = segmented(model, images, (70, 90), stride=2 / 3)
    assert torch.equal(found, enlarge(logits, (70, 90)).argmax(dim=1))
    assert len(found.unique()) > 2
