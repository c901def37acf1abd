"""VQ-KD: codes of length 1 that a teacher's features can be told from; only what is learned gets a gradient."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny import ENCODER
from torch.nn import functional as F

from pantomim.core.batch import Batch
from pantomim.methods.vqkd import VQKDConfig, vqkd_encoder
from pantomim.nn.vqkd import VQKDSizes, directions, nearest, vqkd_networks
from pantomim.teachers.choice import TeacherConfig

pytest.importorskip("vector_quantize_pytorch")

CONFIG = VQKDConfig(
    encoder=replace(ENCODER, position="learned", initialisation="beit"),
    decoder_depth=1,
    vocabulary=8,
    code_width=4,
    teacher=TeacherConfig("random"),
)


def started(**changes):
    """A method whose codes started from a batch, and the batch."""
    torch.manual_seed(0)
    method = replace(CONFIG, **changes).build().train()
    batch = Batch(torch.rand(8, 3, 16, 16), total=8)
    draws = method.draw(batch, 0, torch.Generator())
    return method, batch, draws


def test_codes_start_from_the_first_batch_and_have_length_1():
    method, batch, _ = started()
    assert torch.allclose(method.codebook.norm(dim=1), torch.ones(8))
    latent = directions(method.encoder, method.to_code, batch.images)
    assert torch.allclose(latent.norm(dim=-1), torch.ones(8, 16))
    random = F.normalize(torch.randn(8, 4), dim=-1)
    closeness = [(latent @ codes.mT).amax(dim=-1).mean() for codes in (method.codebook, random)]
    assert closeness[0] > closeness[1] + 0.05  # codes lie among the outputs of the encoder


def test_ids_are_those_of_the_smallest_distance():
    torch.manual_seed(0)
    latent, codes = F.normalize(torch.randn(2, 5, 4), dim=-1), F.normalize(torch.randn(8, 4), dim=-1)
    assert torch.equal(nearest(latent, codes), torch.cdist(latent, codes).argmin(dim=-1))


def test_losses_are_those_of_the_definition():
    method, batch, draws = started(commitment=0.5)
    outputs = method(batch, draws)
    latent = directions(method.encoder, method.to_code, batch.images)
    codes = method.codebook[nearest(latent, method.codebook)]
    target = method.teacher(batch.images).patches
    prediction = method.predict(codes)
    cosine = (F.normalize(prediction, dim=-1) * F.normalize(target, dim=-1)).sum(dim=-1).mean()
    commitment = (latent - codes).square().mean()
    assert torch.allclose(outputs["cosine"], cosine, atol=1e-5)
    assert torch.allclose(outputs["loss"], 1 - cosine + 0.5 * commitment, atol=1e-5)


def test_gradients_go_through_the_codes_to_the_encoder_and_not_to_the_teacher():
    method, batch, draws = started(commitment=0.0)
    method(batch, draws)["loss"].backward()
    assert method.encoder.patch_embed.proj.weight.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in method.teacher.parameters())
    assert not method.codebook.requires_grad


def test_the_gradient_is_what_the_decoder_asks_of_the_codes():
    method, batch, draws = started(commitment=0.0)
    latent = directions(method.encoder, method.to_code, batch.images)
    codes = method.codebook[nearest(latent, method.codebook)].requires_grad_()
    target = method.teacher(batch.images).patches
    loss = 1 - F.cosine_similarity(method.predict(codes), target, dim=-1).mean()
    (asked,) = torch.autograd.grad(loss, codes)
    weight = method.to_code.layers[2].weight
    (expected,) = torch.autograd.grad(latent, weight, asked)
    method(batch, draws)["loss"].backward()
    assert torch.allclose(weight.grad, expected, atol=1e-7)


def test_forward_changes_nothing_and_draw_moves_the_codes_in_training_only():
    method, batch, draws = started()
    before = method.codebook.clone()
    method(batch, draws)
    assert torch.equal(method.codebook, before)
    method.draw(Batch(torch.rand(8, 3, 16, 16), total=8), 1, torch.Generator())
    moved = method.codebook.clone()
    assert not torch.equal(moved, before)
    method.eval().draw(batch, 2, torch.Generator())
    assert torch.equal(method.codebook, moved)


def test_a_step_is_one_batch_for_the_codes():
    """Micro-batches would move the codes once each, so that losses of a step belong to different codes."""
    method, _, _ = started(decay=0.5)
    assert method.requirements.whole_batch
    batch = Batch(torch.rand(8, 3, 16, 16), total=8)
    halves = [Batch(images, total=8) for images in batch.images.split(4)]
    once, twice = copy.deepcopy(method), copy.deepcopy(method)
    once.draw(batch, 1, torch.Generator())
    for half in halves:
        twice.draw(half, 1, torch.Generator())
    assert not torch.allclose(once.codebook, twice.codebook, atol=1e-4)


def test_dead_codes_start_anew_only_if_asked_to():
    for dead_below, comes_back in ((0.0, False), (0.5, True)):
        method, batch, _ = started(dead_below=dead_below)
        codebook, size = method.quantizer._codebook.embed, method.quantizer._codebook.cluster_size
        lost = -codebook[0].mean(dim=0)  # away from everything
        codebook[0, 3], size[0, 3] = F.normalize(lost, dim=0), 0.0
        method.quantizer._codebook.embed_avg[0, 3] = 0.0
        method.draw(batch, 1, torch.Generator())
        latent = directions(method.encoder, method.to_code, batch.images).flatten(0, 1)
        assert ((latent @ method.codebook[3]).max() > 0.999) == comes_back


def test_what_comes_out_gives_the_same_ids():
    method, batch, _ = started()
    exported = method.exports()["tokenizer"]
    latent = directions(method.encoder, method.to_code, batch.images)
    assert torch.equal(exported(batch.images), nearest(latent, method.codebook))
    assert exported.sizes == VQKDSizes(CONFIG.encoder, 8, 4)
    assert {name: tensor.shape for name, tensor in vqkd_networks(exported.sizes).state_dict().items()} == {
        name: tensor.shape for name, tensor in exported.state_dict().items()
    }


def test_the_papers_sizes():
    with torch.device("meta"):
        networks = vqkd_networks(VQKDSizes(vqkd_encoder()))
    # ViT-B/16 with 197 learned positions and its norm, two linear layers, 8192 codes of 32
    encoder = 85_798_656
    assert sum(weight.numel() for weight in networks.parameters()) == encoder + 768 * 768 + 768 + 768 * 32 + 32
    assert networks.codebook.shape == (8192, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocabulary": 1}, r"vocabulary must be at least 2; got 1"),
        ({"decay": 1.0}, r"decay must be in \[0, 1\); got 1.0"),
        ({"dead_below": -1.0}, r"dead_below must be at least 0"),
        ({"teacher": TeacherConfig("ema")}, r"VQKDConfig\.teacher must be trained already; got ema"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


def test_no_teacher_no_method():
    with pytest.raises(ValueError, match="source must be given"):
        replace(CONFIG, teacher=TeacherConfig()).build()
