import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pantomim.formats.native import load_networks, save_tokenizer
from pantomim.nn.dvae import DVAENetworks, DVAESizes
from pantomim.nn.vit import EncoderConfig
from pantomim.nn.vqkd import VQKDSizes, vqkd_networks
from pantomim.tokenizers import Picturing, Tokenizer, load_tokenizer
from pantomim.tokenizers.dvae import DVAETokenizer
from pantomim.tokenizers.random_projection import RandomProjectionTokenizer
from pantomim.tokenizers.resized import ResizedTokenizer, on_grid
from pantomim.tokenizers.usage import code_usage, count_codes, measure_tokenizer, usage_warning
from pantomim.tokenizers.vqkd import VQKDTokenizer

SIZES = DVAESizes(vocabulary=12, width=8, code_width=6, blocks=1, stride=4)
SCALE = {"divisor": 255.0, "rule": "uint8"}


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    networks = DVAENetworks(SIZES)
    torch.nn.init.normal_(networks.encoder.blocks.output.conv.w, std=3.0)
    return DVAETokenizer(networks.encoder, networks.decoder)


@pytest.mark.parametrize("kind", ["dvae", "resized", "projection", "standardised projection", "vqkd"])
def test_ids_of_some_cells_are_those_among_all(kind, tokenizer):
    encoder = EncoderConfig((16, 16), 4, width=8, depth=2, heads=2)
    networks = vqkd_networks(VQKDSizes(encoder, vocabulary=12, code_width=4))
    torch.nn.init.normal_(networks.codebook)
    asked = {
        "dvae": tokenizer,
        "resized": ResizedTokenizer(tokenizer, (16, 16)),
        "projection": RandomProjectionTokenizer(4, vocabulary=12),
        "standardised projection": RandomProjectionTokenizer(4, vocabulary=12, standardised=True),
        "vqkd": VQKDTokenizer(networks),
    }[kind]
    images, only = torch.rand(3, 3, 16, 16), torch.stack([torch.randperm(16)[:6] for _ in range(3)])
    ids = asked(images)
    assert len(ids.unique()) > 2
    assert torch.equal(asked(images, only), ids.gather(1, only))


def test_ids_are_the_best_codes_in_raster_order(tokenizer):
    images = torch.rand(2, 3, 8, 16)
    ids = tokenizer(images)
    logits = tokenizer.encoder(0.8 * images + 0.1)
    assert tokenizer.grid_of((8, 16)) == (2, 4)
    assert len(ids.unique()) > 2
    for row in range(2):
        for col in range(4):
            assert torch.equal(ids[:, row * 4 + col], logits[:, :, row, col].argmax(1))


def test_decoding_is_the_location_squashed_and_unmapped(tokenizer):
    ids = torch.randint(12, (2, 8))
    codes = torch.zeros(2, 12, 2, 4)
    for image in range(2):
        for cell in range(8):
            codes[image, ids[image, cell], cell // 4, cell % 4] = 1
    expected = ((tokenizer.decoder(codes)[:, :3].sigmoid() - 0.1) / 0.8).clamp(0, 1)
    torch.testing.assert_close(tokenizer.decode(ids, (2, 4)), expected)


def test_a_tokenizer_has_no_gradient_and_ignores_autocast(tokenizer):
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = tokenizer.logits(images)
    assert torch.equal(inside, tokenizer.logits(images))
    assert not inside.requires_grad
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())


def test_float64_is_kept(tokenizer):
    assert tokenizer.double().logits(torch.rand(1, 3, 8, 8).double()).dtype == torch.float64
    assert tokenizer.decode(tokenizer(torch.rand(1, 3, 8, 8).double()), (2, 2)).dtype == torch.float64


def test_networks_that_do_not_belong_together():
    other = DVAENetworks(DVAESizes(vocabulary=13, width=8, code_width=6, blocks=1, stride=4))
    with pytest.raises(ValueError, match="must have the encoder's vocabulary, 12; got 13"):
        DVAETokenizer(DVAENetworks(SIZES).encoder, other.decoder)


def test_no_decoder(tokenizer):
    with pytest.raises(ValueError, match=r"DVAETokenizer\.decoder must be there"):
        DVAETokenizer(tokenizer.encoder).decode(torch.zeros(1, 4, dtype=torch.long), (2, 2))


def test_random_projection_by_its_definition():
    tokenizer = RandomProjectionTokenizer(patch_size=4, in_chans=3, vocabulary=50, seed=3)
    images = torch.rand(2, 3, 8, 12).double()
    ids, directions = tokenizer(images), tokenizer.directions.numpy().astype(np.float64)
    assert tokenizer.grid_of((8, 12)) == (2, 3)
    for image in range(2):
        for row in range(2):
            for col in range(3):
                patch = images[image, :, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4].numpy()
                assert ids[image, row * 3 + col] == (patch.reshape(-1) @ directions).argmax()  # channel, row, column


def test_a_standardised_projection_does_not_see_brightness_and_contrast():
    tokenizer = RandomProjectionTokenizer(4, 3, 50, standardised=True)
    images = torch.rand(4, 3, 16, 16).double()
    assert torch.equal(tokenizer(images), tokenizer(images * 0.5 + 0.4))
    raw = RandomProjectionTokenizer(4, 3, 50)
    assert not torch.equal(raw(images), raw(images * 0.5 + 0.4))
    assert len(tokenizer(images).unique()) > len(raw(images).unique())
    patch = images[1, :, 4:8, 8:12].numpy().reshape(-1)
    scores = (patch - patch.mean()) / patch.std(ddof=1) @ tokenizer.directions.numpy().astype(np.float64)
    assert tokenizer(images)[1, 6] == scores.argmax()


def test_random_projection_depends_on_its_seed_alone():
    torch.manual_seed(1)
    first = RandomProjectionTokenizer(4, 3, 50, seed=3)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)  # nobody else's draws change
    assert torch.equal(first.directions, RandomProjectionTokenizer(4, 3, 50, seed=3).directions)
    assert not torch.equal(first.directions, RandomProjectionTokenizer(4, 3, 50, seed=4).directions)
    assert first.state_dict() == {}


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: RandomProjectionTokenizer(4)(torch.rand(1, 1, 8, 8)), "in_chans must be the channels"),
        (lambda: RandomProjectionTokenizer(4)(torch.rand(1, 3, 8, 9)), "multiple of patch_size"),
    ],
)
def test_random_projection_refuses(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_interfaces(tokenizer):
    assert isinstance(tokenizer, Picturing)
    assert isinstance(ResizedTokenizer(tokenizer, (8, 8)), Picturing)
    assert isinstance(RandomProjectionTokenizer(4), Tokenizer)
    assert not isinstance(RandomProjectionTokenizer(4), Picturing)


def test_on_grid_makes_the_tokenizer_see_one_cell_a_patch(tokenizer):
    assert on_grid(tokenizer, (16, 16), (4, 4)) is tokenizer
    resized = on_grid(tokenizer, (32, 48), (4, 6))
    images = torch.rand(2, 3, 32, 48)
    assert resized.grid_of((32, 48)) == (4, 6)
    small = F.interpolate(images, (16, 24), mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.equal(resized(images), tokenizer(small))
    assert resized.vocabulary == 12
    assert resized.decode(resized(images), (4, 6)).shape == (2, 3, 16, 24)


def test_a_random_projection_is_never_resized():
    tokenizer = RandomProjectionTokenizer(4)
    assert on_grid(tokenizer, (16, 16), (4, 4)) is tokenizer
    with pytest.raises(ValueError, match="one id a patch, 2 x 2; got 4 x 4"):
        on_grid(tokenizer, (16, 16), (2, 2))


def test_usage():
    usage = code_usage(count_codes(torch.tensor([[0, 0, 1, 3]]), 8))
    assert (usage.used, usage.positions, usage.vocabulary, usage.top) == (3, 4, 8, 0.5)
    assert usage.perplexity == pytest.approx(2**1.5)
    even = code_usage(torch.full((8,), 5.0).double())
    assert even.perplexity == pytest.approx(8)
    with pytest.raises(ValueError, match="at least one code"):
        code_usage(torch.zeros(8).double())


def usage_of(*shares, vocabulary=512, cells=10_000):
    counts = torch.zeros(vocabulary)
    counts[: len(shares)] = torch.tensor(shares) * cells
    return code_usage(counts.double())


def test_a_collapsed_codebook_is_called_one():
    one = code_usage(count_codes(torch.full((4, 100), 7), 512))
    assert one.collapsed
    warning = usage_warning(one, "RUN")
    assert warning is not None
    assert warning.startswith("RUN must spread images over its codes; got 1 of 512 codes used, perplexity 1.0")
    assert usage_warning(code_usage(count_codes(torch.arange(400).view(4, 100), 512)), "RUN") is None


@pytest.mark.parametrize(
    ("usage", "few"),
    [
        (usage_of(*[1 / 20] * 20), True),  # no more than 20 of 512 codes, all alike
        (usage_of(0.6, *[0.4 / 400] * 400), True),  # one code has most of the cells
        (usage_of(*[1 / 54] * 54), False),  # as even as the codes of dvae_micro_cifar10: perplexity 53.6
        (usage_of(*[1 / 210] * 210, vocabulary=8192), False),  # of large vocabularies not all is asked for
    ],
)
def test_few_codes_are_not_called_a_collapse_but_reported(usage, few):
    assert not usage.collapsed
    warning = usage_warning(usage, "RUN")
    assert (warning is not None) == few == usage.few
    if warning is not None:
        assert warning.startswith(f"RUN uses few codes: {usage}")


def test_measuring(tokenizer):
    images = torch.rand(6, 3, 8, 8)
    report = measure_tokenizer(tokenizer, images.split(4))
    ids = tokenizer(images)
    assert report.usage == code_usage(count_codes(ids, 12))
    assert report.mse == pytest.approx(F.mse_loss(tokenizer.decode(ids, (2, 2)), images).item(), rel=1e-5)
    means = images.unflatten(3, (2, 4)).unflatten(2, (2, 4)).mean((3, 5))
    expected = (images - means.repeat_interleave(4, 2).repeat_interleave(4, 3)).square().mean().item()
    assert report.mse_of_means == pytest.approx(expected, rel=1e-5)
    assert measure_tokenizer(RandomProjectionTokenizer(4), [images]).mse is None
    assert measure_tokenizer(DVAETokenizer(tokenizer.encoder), [images]).mse is None


def test_a_run_folder_gives_the_same_ids(tokenizer, tmp_path):
    networks = DVAENetworks(SIZES)
    save_tokenizer(tmp_path, networks, scale=SCALE, recipe="tiny")
    images = torch.rand(2, 3, 8, 8)
    expected = DVAETokenizer(networks.encoder, networks.decoder)
    before = torch.random.get_rng_state()
    for spec in (tmp_path, tmp_path / "tokenizer.safetensors", str(tmp_path)):
        found = load_tokenizer(spec)
        assert torch.equal(found(images), expected(images))
        assert torch.equal(found.decode(found(images), (2, 2)), expected.decode(expected(images), (2, 2)))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_damaged_run_folders(tmp_path):
    save_tokenizer(tmp_path, DVAENetworks(SIZES), scale=SCALE, recipe="tiny")
    weights, description = tmp_path / "tokenizer.safetensors", tmp_path / "tokenizer.json"
    whole, text = weights.read_bytes(), description.read_text()
    weights.write_bytes(whole[:-4] + b"\1\2\3\4")
    with pytest.raises(ValueError, match="another hash"):
        load_networks(tmp_path)
    weights.write_bytes(whole[:-4])
    with pytest.raises(ValueError, match="must be a whole file"):
        load_networks(tmp_path)
    weights.write_bytes(whole)
    description.write_text(text.replace('"stride": 4', '"stride": 8'))
    with pytest.raises(ValueError, match=r"missing: .*group_4"):
        load_networks(tmp_path)
    description.write_text(text.replace('"stride": 4', '"stride": 5'))
    with pytest.raises(ValueError, match="power of two"):
        load_networks(tmp_path)
    description.write_text(text.replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(ValueError, match="newer pantomim"):
        load_networks(tmp_path)
    description.unlink()
    with pytest.raises(ValueError, match=r"which has no tokenizer\.json"):
        load_networks(tmp_path)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        (None, r"no default; got none\. Ways to get one: .*tokenizer train.*dalle:FILE.*random-projection"),
        ("", "no default; got none"),
        ("nowhere", "something that there is; got nowhere. Ways"),
        ("random-projection:x", "a whole number; got random-projection:x"),
        ("dalle:nowhere.pkl", r"nowhere\.pkl must be a file of weights; got nothing there"),
    ],
)
def test_specifications_that_mean_nothing(spec, match):
    with pytest.raises(ValueError, match=match):
        load_tokenizer(spec)


def test_random_projection_by_name():
    found = load_tokenizer("random-projection:5", patch_size=4, vocabulary=50)
    assert torch.equal(found.directions, RandomProjectionTokenizer(4, 3, 50, seed=5).directions)
    plain, standardised = (load_tokenizer(f"random-projection{name}", patch_size=4) for name in ("", "-standardised"))
    assert (plain.seed, plain.standardised, standardised.standardised) == (0, False, True)
