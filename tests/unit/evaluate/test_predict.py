import csv
import json

import numpy as np
import pytest
import torch
from classifier_folder import write_classifier
from image_files import fill, png
from PIL import Image
from segmenter_folder import write_segmenter

from pantomim.data.mask_files import overlaid, palette
from pantomim.evaluate import predict as module
from pantomim.evaluate.predict import mask_places, predict
from pantomim.formats.native import load_classifier, load_segmenter
from pantomim.nn.segmenter import segmented

CLASSES = ("ant", 'bee, "wild"', "Käfer", "dragon fly")


@pytest.fixture
def run(tmp_path):
    return write_classifier(tmp_path / "run", CLASSES)


@pytest.fixture
def photos(tmp_path):
    """Five photos of which one is cut and one is no image, in a folder without classes."""
    files = {name: png(seed, (16, 16)) for seed, name in enumerate(["b.png", "ä,ö.png", 'quote".png', "a/z.png"])}
    files |= {"cut.png": png(9, (16, 16))[:-60], "text.jpg": b"no image", "notes.txt": b"not even by name"}
    return fill(tmp_path / "photos", files)


def table(path):
    return list(csv.reader(path.read_text(encoding="utf-8").splitlines()))


def chances_of(run, path):
    image = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None] / 255
    return load_classifier(run)(image).softmax(1)[0].tolist()


def test_a_row_an_image_in_order_and_errors_where_they_belong(tmp_path, run, photos):
    found = predict(run, str(photos), tmp_path / "p.csv")
    header, *rows = table(tmp_path / "p.csv")
    assert ",".join(header) == "file,class,probability,class_2,probability_2,class_3,probability_3,error"
    assert [row[0] for row in rows] == ["a/z.png", "b.png", "cut.png", 'quote".png', "text.jpg", "ä,ö.png"]
    assert {len(row) for row in rows} == {len(header)}
    assert found.num_predicted == 4
    reasons = {broken.name: broken.reason for broken in found.unreadable}
    assert list(reasons) == ["cut.png", "text.jpg"]
    for row in rows:
        if row[0] in reasons:
            assert row[1:-1] == [""] * 6
            assert row[-1] == reasons[row[0]] != ""
            continue
        ranked = sorted(zip(chances_of(run, photos / row[0]), CLASSES, strict=True), reverse=True)
        assert row[1:-1:2] == [name for _, name in ranked[:3]]
        assert [float(cell) for cell in row[2:-1:2]] == pytest.approx([chance for chance, _ in ranked[:3]], abs=1e-5)
        assert row[-1] == ""


def test_a_column_for_every_class(tmp_path, run, photos):
    predict(run, str(photos), tmp_path / "p.csv", all=True)
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert list(rows["b.png"]) == ["file", "class", "probability", *CLASSES, "error"]
    chances = [float(rows["b.png"][name]) for name in CLASSES]
    assert chances == pytest.approx(chances_of(run, photos / "b.png"), abs=1e-5)
    assert rows["b.png"]["class"] == CLASSES[int(np.argmax(chances))]
    assert {rows["cut.png"][name] for name in CLASSES} == {""}


@pytest.mark.parametrize("top", [1, 9])
def test_as_many_classes_as_asked_for_or_there_are(tmp_path, run, photos, top):
    predict(run, str(photos / "b.png"), tmp_path / "p.csv", top=top)
    header, row = table(tmp_path / "p.csv")
    assert len(row) == len(header) == 2 + 2 * min(top, 4)
    assert row[0] == "b.png"


def test_images_in_an_array_with_and_without_labels_or_splits(tmp_path, run):
    images = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "bare.npz", images=images)
    np.savez(tmp_path / "more.npz", images=images, labels=list("abcabca"), split=["test"] * 3 + ["train"] * 4)
    for name in ("bare", "more"):
        assert predict(run, str(tmp_path / f"{name}.npz"), tmp_path / f"{name}.csv").num_predicted == 7
    assert (tmp_path / "bare.csv").read_bytes() == (tmp_path / "more.csv").read_bytes()
    assert [row[0] for row in table(tmp_path / "bare.csv")[1:]] == list("0123456")


def test_images_beside_splits_are_not_forgotten(tmp_path, run):
    files = {name: png(3, (16, 16)) for name in ("train/a/1.png", "test/a/1.png", "train/b/1.png", "extra/1.png")}
    assert predict(run, str(fill(tmp_path / "mixed", files)), tmp_path / "p.csv").num_predicted == 4


def test_a_list_with_a_missing_file(tmp_path, run, photos):
    (photos / "list.txt").write_text("b.png\nlost.png\nb.png\nlost.png\n")
    found = predict(run, str(photos / "list.txt"), tmp_path / "p.csv")
    assert (found.num_predicted, len(found.unreadable)) == (2, 2)


def test_names_that_are_no_utf_8_are_escaped(tmp_path, run, photos):
    (photos / "b.png").rename(str(photos / "b") + "\udcff.png")
    predict(run, str(photos), tmp_path / "p.csv")
    assert "b%FF.png," in (tmp_path / "p.csv").read_text(encoding="utf-8")


def test_a_file_is_overwritten_only_if_asked_and_nothing_is_done_before(tmp_path, run, photos, monkeypatch):
    out = tmp_path / "p.csv"
    out.write_text("precious")
    with monkeypatch.context() as patched:
        patched.setattr(module, "open_images", lambda spec: pytest.fail("worked first"))
        with pytest.raises(ValueError, match=r"predict\.out must be a new file; got .*p\.csv"):
            predict(run, str(photos), out)
    assert out.read_text() == "precious"
    predict(run, str(photos), out, overwrite=True)
    assert out.read_text().startswith("file,class")


def test_several_chunks_give_the_same(tmp_path, run, photos):
    for chunk in (1, 100):
        predict(run, str(photos), tmp_path / f"{chunk}.csv", chunk=chunk)
    one, all_at_once = (table(tmp_path / f"{chunk}.csv") for chunk in (1, 100))
    assert [row[:2] for row in one] == [row[:2] for row in all_at_once]


@pytest.mark.parametrize(
    ("channels", "source", "message"),
    [
        (1, "photos", r"an encoder of 1 and .* of 3\."),
        (3, "deep.npz", r"got another \(uint16: 65535 becomes 1\)"),
        (3, "only_broken", r"must be fewer than all; got 2 of 2"),
        (3, "nowhere", r"Source\.spec must be a folder"),
    ],
)
def test_images_that_do_not_fit_are_refused(tmp_path, photos, channels, source, message):
    run = write_classifier(tmp_path / "other", CLASSES, channels=channels)
    np.savez(tmp_path / "deep.npz", images=np.zeros((4, 16, 16, 3), np.uint16))
    fill(tmp_path / "only_broken", {"1.png": b"no image", "2.png": b""})
    with pytest.raises(ValueError, match=message):
        predict(run, str(tmp_path / source), tmp_path / "p.csv")
    assert not (tmp_path / "p.csv").exists()


def test_what_is_no_classifier_is_told_apart(tmp_path, run, photos):
    (tmp_path / "pre").mkdir()
    (tmp_path / "pre" / "encoder.json").write_text(json.dumps({"format_version": 1}))
    with pytest.raises(ValueError, match=r"an encoder alone.*`pantomim finetune` makes a classifier"):
        predict(tmp_path / "pre", str(photos), tmp_path / "p.csv")
    with pytest.raises(ValueError, match=r"must end in \.csv"):
        predict(run, str(photos), tmp_path / "p.txt")
    assert predict(run / "classifier.safetensors", str(photos), tmp_path / "p.csv").num_predicted == 4


def test_masks_lie_inside_the_folder_one_for_each_image():
    names = ["a/x.jpg", "a/x.png", "a/y.jpg", "y.tar.png", "7", "/root/z.png", "../up/z.png"]
    places = ["a/x.jpg", "a/x.png", "a/y", "y.tar", "7", "root/z", "__/up/z"]
    assert mask_places(names) == places


def test_a_mask_has_the_colours_and_ids_of_the_training(tmp_path, photos):
    run = write_segmenter(tmp_path / "segmenter", class_ids=[3, 7, 200])
    found = predict(run, str(photos), tmp_path / "masks", overlays=True)
    assert (found.num_predicted, [broken.name for broken in found.unreadable]) == (4, ["cut.png", "text.jpg"])
    mask = Image.open(tmp_path / "masks" / "b.png")
    ids = np.asarray(mask)
    assert set(np.unique(ids).tolist()) <= {3, 7, 200}
    assert (np.asarray(mask.convert("RGB")) == palette()[ids]).all()
    photo = np.array(Image.open(photos / "b.png"))
    overlay = np.asarray(Image.open(tmp_path / "masks" / "b.overlay.png"))
    assert (overlay == overlaid(photo.transpose(2, 0, 1), ids)).all()
    assert json.loads((tmp_path / "masks" / "classes.json").read_text()) == {"3": "black", "7": "red", "200": "green"}
    image = torch.from_numpy(photo).permute(2, 0, 1)[None] / 255
    expected = segmented(load_segmenter(run), image, (16, 16), 0.5)[0].numpy()
    assert (ids == np.array([3, 7, 200])[expected]).all()


def test_ids_that_a_png_cannot_hold_are_refused(tmp_path, photos):
    run = write_segmenter(tmp_path / "segmenter", class_ids=[3, 7, 1000])
    with pytest.raises(ValueError, match=r"Segmenter.class_ids must be at most 255 to be written as PNG; got 1000"):
        predict(run, str(photos), tmp_path / "masks")
    assert not (tmp_path / "masks").exists()


def test_images_outside_the_splits_are_told(tmp_path, run, caplog):
    files = {f"{part}/{name}.png": png(n, (16, 16)) for n, part in enumerate(("train", "test", "new")) for name in "ab"}
    predict(run, str(fill(tmp_path / "parts", files)), tmp_path / "p.csv")
    assert len(table(tmp_path / "p.csv")) == 1 + 4
    assert "2 images of" in caplog.text
    assert "outside its splits" in caplog.text


def test_one_of_two_ways_to_more_classes(tmp_path, run, photos):
    with pytest.raises(ValueError, match=r"predict\.top must be left out beside predict\.all; got 2"):
        predict(run, str(photos), tmp_path / "p.csv", top=2, all=True)
