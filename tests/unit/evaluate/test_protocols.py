import json
from functools import partial

import numpy as np
import pytest
import torch
from image_files import fill, png
from probing import scores_of

from pantomim.data.sources import open_source
from pantomim.data.transforms import crop_boxes, draw_uniforms
from pantomim.evaluate import PROTOCOLS, Memo, base, evaluate, protocol_named
from pantomim.evaluate.attentive import Attentive
from pantomim.evaluate.augmented import CROP
from pantomim.evaluate.features import random_init_encoder
from pantomim.evaluate.few_labels import FewLabels
from pantomim.evaluate.knn import KNN
from pantomim.evaluate.linear import Linear
from pantomim.evaluate.linear_mae import LinearMAE
from pantomim.evaluate.parts import open_labelled
from pantomim.formats.files import hash_weights
from pantomim.formats.native import read_description, save_encoder
from pantomim.formats.timm import load_timm
from pantomim.methods.probe import ProbeConfig
from pantomim.nn.vit import EncoderConfig


def pictures(count, seed=0, channels=3, num_classes=3):
    """Classes differ in where the bright half is."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % num_classes
    images = rng.integers(0, 120, (count, channels, 8, 8), dtype=np.uint8)
    images[labels == 0, :, :4] += 120
    images[labels == 1, :, 4:] += 120
    return images, labels


@pytest.fixture
def data(tmp_path):
    images, labels = pictures(90)
    np.savez(tmp_path / "halves.npz", images=images, labels=labels)
    return str(tmp_path / "halves.npz")


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(1)
    config = EncoderConfig(image_size=(8, 8), patch_size=4, width=16, depth=1, heads=2)
    save_encoder(tmp_path / "run", config.build(), scale={"divisor": 255.0}, recipe="mae_test")
    return str(tmp_path / "run")


QUICK = {
    "knn": partial(KNN),
    "linear": partial(Linear, lrs=(0.01, 0.1), epochs=10),
    "few": partial(FewLabels, labels_per_class=5, draws=2),
    "mae": partial(LinearMAE, epochs=4, warmup_epochs=1),
}
every_kind = pytest.mark.parametrize("kind", QUICK)


@every_kind
def test_every_protocol_beside_its_baselines(kind, data, run, tmp_path):
    path, result = QUICK[kind](run, data).to_file()
    name, stem = {"few": ("linear", "linear-5"), "mae": ("linear-mae",) * 2}.get(kind, (kind, kind))
    assert path == tmp_path / "run" / "eval" / f"{stem}-halves.json"
    assert json.loads(path.read_text()) == result
    assert result["protocol"] == name
    assert result["protocol_version"] == (2 if kind == "mae" else 1)
    assert result["seed"] == 0
    assert result["encoder_sha256"] == read_description(run)["sha256"]
    assert result["data"]["num_train"] == 72
    assert result["data"]["num_test"] == 18
    assert result["data"]["broken"] == []
    assert "broken" not in QUICK[kind](run, data).headline(result)
    for contender in ("trained", "untrained", "pixels"):
        assert 0 <= result[contender]["top1"] <= 1
        assert 0 <= result[contender]["top1_per_class"] <= 1
    if kind != "mae":
        assert {"top1_class", "top1_mean"} <= result["trained"].keys() & result["untrained"].keys()
        assert result["pixels"]["top1"] > 0.8, "pixels tell bright halves apart"
    headline = QUICK[kind](run, data).headline(result)
    assert "raw pixels" in headline
    assert "; 18 test images" in headline
    assert ("each score ±" in headline) == ("top1_std" not in result["trained"])


@every_kind
def test_the_same_scores_twice(kind, data, run, tmp_path):
    first, second = (evaluate(QUICK[kind](run, data)) for _ in range(2))
    assert {**first, "wall_s": 0} == {**second, "wall_s": 0}


@pytest.mark.parametrize("kind", ["knn", "mae"])
def test_broken_images_are_told_and_not_counted(kind, run, tmp_path):
    files = {f"train/{c}/{k:03}.png": png(k, (8, 8)) for c in "ab" for k in range(70)}
    files |= {f"test/{c}/{k:03}.png": png(k, (8, 8)) for c in "ab" for k in range(50)}
    files["train/a/007.png"] = files["train/a/007.png"][:-60]  # whole header, cut pixels
    files["test/b/003.png"] = files["test/b/003.png"][:-60]
    result = evaluate(QUICK[kind](run, str(fill(tmp_path / "cut", files))))
    assert (result["data"]["num_train"], result["data"]["num_test"]) == (139, 99)
    told = [(broken["split"], broken["name"]) for broken in result["data"]["broken"]]
    assert told == [("train", "train/a/007.png"), ("test", "test/b/003.png")]
    assert all(broken["reason"] for broken in result["data"]["broken"])
    assert "2 broken images left out" in QUICK[kind](run, "cut").headline(result)


def test_out_is_written(data, run, tmp_path):
    out = tmp_path / "deep" / "scores.json"
    path, result = KNN(run, data, out=out).to_file()
    assert path == out
    assert json.loads(out.read_text()) == result


def test_an_encoder_outside_a_run_needs_out(data):
    with pytest.raises(ValueError, match=r"Evaluation\.out must be given"):
        KNN("timm:test_vit", data).to_file()


@pytest.mark.parametrize(("out", "message"), [("k.csv", r"must end in \.json"), ("taken.json", "must be a file")])
def test_out_is_checked_before_the_work(data, run, tmp_path, monkeypatch, out, message):
    (tmp_path / "taken.json").mkdir()
    monkeypatch.setattr(base, "evaluate", lambda config: pytest.fail("worked first"))
    with pytest.raises(ValueError, match=rf"Evaluation\.out {message}"):
        KNN(run, data, out=tmp_path / out).to_file()


def test_the_run_folder_is_checked_before_the_work(data, run, tmp_path, monkeypatch):
    (tmp_path / "run" / "eval").write_text("no folder")
    monkeypatch.setattr(base, "evaluate", lambda config: pytest.fail("worked first"))
    with pytest.raises(ValueError, match=r"Evaluation\.out must lie in a folder"):
        KNN(run, data).to_file()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there(data, run):
    with pytest.raises(ValueError, match=r"Evaluation\.device must be a device of this machine; got cuda"):
        KNN(run, data, device="cuda")


def test_own_splits_are_used(tmp_path):
    images, labels = pictures(60)
    split = np.array(["train"] * 30 + ["val"] * 15 + ["test"] * 15)
    np.savez(tmp_path / "three.npz", images=images, labels=labels, split=split)
    parts = open_labelled(str(tmp_path / "three.npz")).parts
    assert {name: (part.split, len(part)) for name, part in parts.items()} == {
        "train": ("train", 30),
        "val": ("val", 15),
        "test": ("test", 15),
    }
    np.savez(tmp_path / "two.npz", images=images, labels=labels, split=np.where(split == "test", "val", split))
    parts = open_labelled(str(tmp_path / "two.npz")).parts
    assert {name: (part.split, len(part)) for name, part in parts.items()} == {
        "train": ("train", 30),
        "test": ("val", 30),
    }


def test_no_seed_lets_the_test_part_hold_images_of_pre_training(data, run, monkeypatch):
    trained_on, opened = set(open_source(data, "train").names), []
    original = base.open_labelled

    def remember(*given):
        opened.append(original(*given).parts)
        return original(*given)

    monkeypatch.setattr(base, "open_labelled", remember)
    for seed in (0, 1, 7):
        evaluate(KNN(run, data, seed=seed))
        assert set(opened[-1]["train"].names) == trained_on
        assert not set(opened[-1]["test"].names) & trained_on


def test_missing_labels_are_an_error_that_says_how_to_give_them(tmp_path, run):
    np.savez(tmp_path / "bare.npz", images=pictures(30)[0])
    with pytest.raises(ValueError, match=r"must have labels; got none for .*bare\.npz.*one folder a class"):
        evaluate(KNN(run, str(tmp_path / "bare.npz")))


def test_channels_unlike_the_encoders(tmp_path, run):
    images, labels = pictures(30, channels=5)
    np.savez(tmp_path / "five.npz", images=images, labels=labels)
    with pytest.raises(ValueError, match=r"an encoder of 3 and .*five\.npz of 5"):
        evaluate(Linear(run, str(tmp_path / "five.npz")))


def test_a_single_class_is_refused(tmp_path, run):
    np.savez(tmp_path / "one.npz", images=pictures(30)[0], labels=np.zeros(30, dtype=int))
    with pytest.raises(ValueError, match="at least two classes"):
        evaluate(Linear(run, str(tmp_path / "one.npz")))


def test_a_class_of_test_that_train_has_not(tmp_path, run):
    images, labels = pictures(30)
    split = np.where(labels == 2, "test", "train")
    np.savez(tmp_path / "unknown.npz", images=images, labels=labels, split=split)
    with pytest.raises(ValueError, match=r"test.*train|train.*test"):
        evaluate(Linear(run, str(tmp_path / "unknown.npz")))


def test_protocols_are_named_once_and_each_has_its_own_options():
    assert [protocol.protocol for protocol in PROTOCOLS] == [
        "knn",
        "linear",
        "few_labels",
        "linear_mae",
        "attentive",
        "segmentation",
        "label_free",
    ]
    assert protocol_named("linear_mae") is LinearMAE
    with pytest.raises(ValueError, match=r"Evaluation\.protocol must be one of knn, .*Did you mean linear_mae\?"):
        protocol_named("linear-mae")
    with pytest.raises(TypeError, match="labels_per_class"):
        KNN("run", "data", labels_per_class=5)


def test_another_interpolation_is_recorded_and_another_evaluation(data, run, tmp_path):
    config = EncoderConfig(image_size=(12, 12), patch_size=4, width=16, depth=1, heads=2, interpolation="bilinear")
    save_encoder(tmp_path / "other", config.build(), scale={"divisor": 255.0}, recipe="mae_test")
    ours, other = (evaluate(KNN(encoder=encoder, data=data)) for encoder in (run, str(tmp_path / "other")))
    assert [result["data"]["interpolation"] for result in (ours, other)] == ["bicubic", "bilinear"]
    (tmp_path / "knn.json").write_text(json.dumps(ours))
    assert base.free_path(tmp_path / "knn.json", ours | {"data": without(ours["data"], "interpolation")}).stem == "knn"
    assert base.free_path(tmp_path / "knn.json", ours | {"data": other["data"]}).stem != "knn"


def without(values, name):
    return {key: value for key, value in values.items() if key != name}


def test_the_random_init_encoder_is_seeded_and_leaves_no_trace():
    torch.manual_seed(0)
    encoder = EncoderConfig(image_size=(8, 8), patch_size=4, width=16, depth=1, heads=2).build().eval()
    state = torch.random.get_rng_state()
    twins = [random_init_encoder(encoder, seed) for seed in (5, 5, 6)]
    assert torch.equal(torch.random.get_rng_state(), state)
    hashes = [hash_weights(twin.state_dict()) for twin in twins]
    assert hashes[0] == hashes[1] != hashes[2]
    assert hash_weights(encoder.state_dict()) not in hashes
    assert twins[0].config == encoder.config
    assert not twins[0].training


def test_the_random_init_encoder_of_a_wrapped_model():
    encoder = load_timm("test_resnet", pretrained=False)
    twin = random_init_encoder(encoder, 0)
    assert twin.state_dict().keys() == encoder.state_dict().keys()
    assert hash_weights(twin.state_dict()) != hash_weights(encoder.state_dict())
    assert not twin.training


def test_a_single_draw_is_cut_to_the_image_and_never_replaced():
    uniforms = draw_uniforms(2000, seed=0, step=0)
    boxes, _ = crop_boxes(np.tile([20, 30], (2000, 1)), uniforms, CROP, (16, 16))
    area = (0.08 + 0.92 * uniforms[:, 0]) * 600
    aspect = np.exp(np.log(3 / 4) + (np.log(4 / 3) - np.log(3 / 4)) * uniforms[:, 10])
    assert (boxes[:, 2] == np.minimum(np.rint(np.sqrt(area / aspect)), 20)).all()
    assert (boxes[:, 3] == np.minimum(np.rint(np.sqrt(area * aspect)), 30)).all()
    assert (boxes[:, 2] == 20).mean() > 0.1, "large draws are cut"
    assert (boxes[:, 0] + boxes[:, 2] <= 20).all()
    assert (boxes[:, 1] + boxes[:, 3] <= 30).all()


def test_the_mae_probe_learns_what_its_features_hold(data, tmp_path):
    def halves(images):
        return torch.stack([images[:, :, :4].mean((1, 2, 3)), images[:, :, 4:].mean((1, 2, 3))], dim=1)

    probe = LinearMAE("run", data, epochs=40, warmup_epochs=5, base_lr=20.0)
    readers = {"oracle": halves, "blind": lambda images: images.new_zeros(len(images), 2)}
    scores = scores_of(readers, probe, ProbeConfig(), tmp_path)
    assert scores["oracle"]["top1"] > 0.85
    assert scores["blind"]["top1"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("kind", [KNN, LinearMAE, Attentive])
def test_an_encoder_that_changes_is_noticed(data, run, monkeypatch, kind):
    def unfrozen(evaluation, bench):
        bench.encoders["trained"].norm.bias.data.add_(1)
        return {}

    monkeypatch.setattr(kind, "run", unfrozen)
    with pytest.raises(AssertionError, match="frozen encoder has changed"):
        evaluate(kind(run, data))


@pytest.mark.parametrize("wrong", [{"warmup_epochs": 90}, {"base_lr": 0.0}, {"batch_size": 1}])
def test_wrong_settings_of_the_mae_probe(wrong):
    with pytest.raises(ValueError, match=r"LinearMAE\.(warmup_epochs|base_lr|batch_size) must"):
        LinearMAE("run", "data", **wrong)


def test_evaluations_that_share_a_memo_extract_features_once(data, run, monkeypatch):
    kinds = [QUICK[kind](run, data) for kind in ("knn", "linear", "few")]
    alone = [evaluate(kind) for kind in kinds]
    calls = []
    for name in ("extract", "pixel_table", "open_labelled"):
        original = getattr(base, name)

        def counted(*args, name=name, original=original, **options):
            calls.append(name)
            return original(*args, **options)

        monkeypatch.setattr(base, name, counted)
    memo = Memo()
    shared = [evaluate(kind, memo) for kind in kinds]
    assert [{**result, "wall_s": 0} for result in shared] == [{**result, "wall_s": 0} for result in alone]
    assert {name: calls.count(name) for name in set(calls)} == {"extract": 4, "pixel_table": 2, "open_labelled": 1}
    evaluate(KNN(run, data, images=40), memo)
    assert calls.count("extract") == 8, "other images are other features"
    evaluate(KNN(run, data, images=40, image_size=(16, 16)), memo)
    assert calls.count("extract") == 12, "and so are other sizes of them"


@every_kind
def test_only_those_asked_for_are_scored(kind, data, run, monkeypatch):
    everyone = evaluate(QUICK[kind](run, data))
    monkeypatch.setattr(base, "channel_stats", lambda dataset: pytest.fail("pixels were not asked for"))
    one = evaluate(QUICK[kind](run, data, contenders=("trained",)))
    assert one["trained"] == everyone["trained"]
    assert not {"untrained", "pixels"} & set(one)
    assert "random-init" not in QUICK[kind](run, data).headline(one)
    twin = evaluate(QUICK[kind](run, data, contenders=("untrained",)))
    assert "trained" not in twin
    assert twin["untrained"] == everyone["untrained"]


def test_few_test_images_are_a_balanced_draw(data, run):
    result = evaluate(KNN(run, data, test_images=6))
    assert result["data"]["num_test"] == 6
    assert result["data"]["num_train"] == 72
    assert result["trained"]["top1"] == result["trained"]["top1_per_class"], "as many images of each class"
    again = evaluate(KNN(run, data, test_images=6, seed=5))
    assert again["data"] == result["data"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"contenders": ()}, "contenders must name at least one"),
        ({"contenders": ("pixels", "pixels")}, "each once"),
        ({"test_images": 0}, "test_images must be at least 1"),
    ],
)
def test_nobody_to_score_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        KNN("run", "mnist", **wrong)


@every_kind
def test_another_image_size_is_used_and_recorded(data, run, kind):
    result = evaluate(QUICK[kind](run, data, image_size=(16, 12)))
    assert result["data"]["image_size"] == [16, 12]
    assert result["encoder_sha256"] == read_description(run)["sha256"], "of the encoder as it is in its file"
    with pytest.raises(ValueError, match="multiple of the patches"):
        evaluate(QUICK[kind](run, data, image_size=(15, 12)))
