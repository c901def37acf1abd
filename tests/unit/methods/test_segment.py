from dataclasses import replace

import pytest
import torch

from pantomim.core.batch import Batch
from pantomim.methods.segment import SegmentConfig
from pantomim.nn.segmenter import AUXILIARY_LEVEL, UPerNetConfig, pixel_loss
from pantomim.nn.vit import EncoderConfig

CONFIG = SegmentConfig(
    encoder=EncoderConfig(image_size=(32, 32), patch_size=4, width=24, depth=4, heads=2),
    num_classes=3,
    head=UPerNetConfig(channels=16, auxiliary_channels=8),
)


@pytest.mark.parametrize("weight", [0.4, 0.0])
def test_the_auxiliary_head_adds_its_share_of_the_loss_and_nothing_else(weight):
    batch = Batch(torch.rand(2, 3, 32, 32), masks=torch.randint(3, (2, 32, 32)))
    method = replace(CONFIG, head=replace(CONFIG.head, auxiliary_weight=weight)).build().eval()
    found = method(batch, None)
    model, (expected, accuracy) = method.model, pixel_loss(method.model(batch.images), batch.masks)
    assert found["accuracy"] == accuracy
    if weight:
        auxiliary = model.auxiliary(model.neck(model.tap(batch.images))[AUXILIARY_LEVEL])
        assert auxiliary.shape == (2, 3, 2, 2), "stride 16"
        assert found["loss_auxiliary"] == weight * pixel_loss(auxiliary, batch.masks)[0]
        expected = expected + found["loss_auxiliary"]
    assert (found["loss"] == expected, "loss_auxiliary" in found) == (True, bool(weight))
