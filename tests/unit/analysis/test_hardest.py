import numpy as np
from classifier_folder import labelled, write_classifier
from tiny import tiny_run

from pantomim.analysis import write_pictures
from pantomim.analysis.pictures import read_rows
from pantomim.config import replace, to_yaml
from pantomim.data.sources import open_source
from pantomim.evaluate.base import read_scored
from pantomim.evaluate.classification import Classification
from pantomim.methods.supervised import SupervisedConfig
from pantomim.report import make_report

CLASSES = ("ant", "bee", "cat", "dog")


def scored_on(folder, *sources):
    run = write_classifier(folder, CLASSES)
    config = replace(tiny_run(sources[0]), method=SupervisedConfig())
    (run / "config.yaml").write_text(to_yaml(config))
    return run, [Classification(str(run), str(source), device="cpu").to_file()[0] for source in sources]


def test_pictures_are_of_the_images_with_the_highest_loss_on_the_page_too(tmp_path):
    source = labelled(tmp_path / "own.npz", CLASSES, side=160)
    run, (file,) = scored_on(tmp_path / "run", source)
    (row,) = read_rows(write_pictures(run)).rows
    hardest, dataset = read_scored(file)["trained"]["hardest"], open_source(str(source), "test")
    assert (row.title, len(row.pictures)) == (file.stem, 12)
    for picture, label, image in zip(row.pictures, row.labels, hardest[:12], strict=True):
        assert label.startswith(f"{image['true']} · predicted {image['predicted']}, ")
        assert label.endswith(image["name"])
        assert (picture == dataset.read(dataset.names.index(image["name"])).transpose(1, 2, 0)).all()
    page = make_report(run).read_text()
    assert page.count("<figure") == 12
    assert "true class, the one predicted" in page.replace("\n", " ")


def test_sets_that_are_gone_are_warned_of_and_the_others_shown(tmp_path):
    own, other = (labelled(tmp_path / f"{name}.npz", CLASSES, seed=seed) for seed, name in enumerate(("own", "other")))
    run, files = scored_on(tmp_path / "run", own, other)
    other.unlink()
    found = read_rows(write_pictures(run))
    assert [row.title for row in found.rows] == [files[0].stem]
    assert "hardest images of other: Source.spec must be" in found.warnings[0]
    moved = own.rename(tmp_path / "moved.npz")
    assert [row.title for row in read_rows(write_pictures(run, str(moved))).rows] == [files[0].stem]
    np.savez(own, images=np.zeros((2, 16, 16, 3), np.uint8), labels=np.array(["ant", "bee"]), split=["train", "test"])
    assert any("has no" in warning for warning in read_rows(write_pictures(run)).warnings)


def test_a_run_without_scores_has_none(tmp_path):
    run, _ = scored_on(tmp_path / "run", labelled(tmp_path / "own.npz", CLASSES))
    for file in (run / "eval").iterdir():
        file.unlink()
    assert write_pictures(run) is None
