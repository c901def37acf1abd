"""Our encoder against timm's vision transformer on copied weights, trained values included."""

from dataclasses import replace

import pytest
import torch
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer

from pantomim.formats.native import timm_arguments, timm_entry
from pantomim.nn.heads import Classifier
from pantomim.nn.resize import adapted_encoder, resample
from pantomim.nn.vit import EncoderConfig

SMALL = {"width": 24, "depth": 3, "heads": 3}
VARIANTS = {
    "plain": EncoderConfig(image_size=(16, 16), patch_size=4, **SMALL),
    "not square": EncoderConfig(image_size=(12, 20), patch_size=4, **SMALL),
    "registers": EncoderConfig(image_size=(16, 12), patch_size=4, registers=3, **SMALL),
    "no class token": EncoderConfig(image_size=(16, 16), patch_size=8, class_token=False, **SMALL),
    "registers alone": EncoderConfig(image_size=(16, 16), patch_size=8, class_token=False, registers=2, **SMALL),
    "learned": EncoderConfig(image_size=(16, 16), patch_size=4, position="learned", registers=1, **SMALL),
    "seven channels": EncoderConfig(
        image_size=(16, 16), patch_size=4, in_chans=7, mean=tuple(i / 2 for i in range(7)), std=(0.5,) * 7, **SMALL
    ),
    "narrow mlp": EncoderConfig(image_size=(15, 10), patch_size=5, mlp_ratio=1.3, **SMALL),
}


def randomised(module):
    """Every parameter moved from its initial value, so that none can be ignored unseen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) / 5)
    return module.double().eval()


def timms(config, state, **kwargs):
    model = VisionTransformer(**{**timm_arguments(config), **kwargs}).double().eval()
    model.load_state_dict(state)
    return model


def inputs(encoder):
    """Images as ours takes them, and as timm's takes them."""
    images = torch.rand(3, encoder.in_chans, *encoder.image_size, dtype=torch.float64)
    return images, (images - encoder.mean.view(-1, 1, 1)) / encoder.std.view(-1, 1, 1)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_features_are_timms(config):
    encoder = randomised(config.build())
    images, normalised = inputs(encoder)
    features = encoder(images)
    expected = timms(config, encoder.state_dict()).forward_features(normalised)
    torch.testing.assert_close(torch.cat(features[:2], dim=1), expected, rtol=0, atol=1e-10)
    assert features.prefix.shape[1] == config.registers + config.class_token


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_all_patches_in_any_order_are_the_plain_encoder(config):
    encoder = randomised(config.build())
    images, _ = inputs(encoder)
    order = torch.rand(3, encoder.num_patches).argsort(dim=1)
    whole, permuted = encoder(images), encoder(images, order)
    torch.testing.assert_close(permuted.prefix, whole.prefix)
    torch.testing.assert_close(permuted.patches, whole.patches.take_along_dim(order.unsqueeze(-1), dim=1))


@pytest.mark.parametrize("layer", [0, -1])
def test_attention_weights_are_timms(layer):
    config = VARIANTS["registers"]
    encoder = randomised(config.build())
    images, normalised = inputs(encoder)
    attention = list(encoder.each_block(images, need_attention=True))[layer].attention
    model, seen = timms(config, encoder.state_dict()), []
    block = model.blocks[layer]
    block.attn.fused_attn = False
    block.attn.attn_drop.register_forward_hook(lambda module, args, output: seen.append(output))
    model.forward_features(normalised)
    torch.testing.assert_close(attention, seen[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("pool", ["mean", "class"])
def test_classifier_logits_are_timms(pool):
    config = VARIANTS["plain"]
    classifier = randomised(Classifier(config.build(), 5, pool))
    images, normalised = inputs(classifier.encoder)
    state = {name.removeprefix("encoder."): tensor for name, tensor in classifier.state_dict().items()}
    kwargs = {"global_pool": "avg", "fc_norm": True} if pool == "mean" else {"global_pool": "token"}
    model = timms(config, state, num_classes=5, **kwargs)
    torch.testing.assert_close(classifier(images), model(normalised), rtol=0, atol=1e-10)


def test_gradients_are_timms():
    config = VARIANTS["learned"]
    encoder = randomised(config.build())
    images, normalised = inputs(encoder)
    model = timms(config, encoder.state_dict())
    torch.cat(encoder(images)[:2], dim=1).square().mean().backward()
    model.forward_features(normalised).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(encoder.get_parameter(name).grad, parameter.grad, rtol=0, atol=1e-12)


def test_another_image_size_keeps_the_prefix_and_resamples_patches():
    config = VARIANTS["registers"]
    encoder = randomised(config.build())
    twin = adapted_encoder(encoder, replace(config, image_size=(24, 20)))
    table = twin.pos_embed.detach()
    assert torch.equal(table[:, :4], encoder.pos_embed[:, :4])
    assert table.shape == (1, 4 + 30, 24)
    back = resample(table, (6, 5), (4, 3), num_prefix=4)
    assert torch.equal(back[:, :4], encoder.pos_embed[:, :4])
    assert not torch.equal(back[:, 4:], encoder.pos_embed[:, 4:])


BEITS = [
    EncoderConfig(
        image_size=(12, 20),
        patch_size=4,
        position=position,
        relative_position=relative,
        layer_scale=scale,
        attention_bias="qv",
        **SMALL,
    )
    for position, relative, scale in (
        ("none", "shared", 0.1),
        ("none", "blocks", 0.1),
        ("learned", "none", None),
        ("learned", "blocks", None),
        ("sincos_rows_first", "none", 0.1),
    )
]


@pytest.mark.parametrize(
    "config", BEITS, ids=lambda config: f"{config.position}-{config.relative_position}-{config.layer_scale}"
)
def test_beit_s_features_and_gradients_are_timms(config):
    encoder = randomised(config.build())
    images, normalised = inputs(encoder)
    entry = timm_entry(config)["timm"]
    assert entry["class"] == "beit.Beit"
    model = Beit(**entry["kwargs"]).double().eval()
    model.load_state_dict(encoder.state_dict())
    ours, theirs = torch.cat(encoder(images)[:2], dim=1), model.forward_features(normalised)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    ours.square().mean().backward()
    theirs.square().mean().backward()
    for name, parameter in model.named_parameters():
        found = encoder.get_parameter(name)
        if found.requires_grad:
            torch.testing.assert_close(found.grad, parameter.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [0, -1, 99])
def test_more_intermediates_than_blocks_are_refused(count):
    encoder = next(iter(VARIANTS.values())).build()
    with pytest.raises(ValueError, match=f"indices must be from 1 to the {encoder.depth} blocks; got {count}"):
        encoder.forward_intermediates(inputs(encoder)[0], count)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("how", [{}, {"indices": 1, "norm": True, "output_fmt": "NLC"}, {"indices": [-1, 0]}], ids=str)
@pytest.mark.parametrize("more", [{}, {"return_prefix_tokens": True}, {"intermediates_only": True, "stop_early": True}])
def test_intermediates_are_timms(config, how, more):
    encoder = randomised(config.build())
    images, normalised = inputs(encoder)
    found = encoder.forward_intermediates(images, **how, **more)
    expected = timms(config, encoder.state_dict()).forward_intermediates(normalised, **how, **more)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
