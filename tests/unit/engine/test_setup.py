import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from image_files import fill
from masked_images import ade20k_files, masked_folder
from tiny import tiny_images, tiny_run

from pantomim.config import DataConfig, Duration, MaskConfig, Validation
from pantomim.data.augment import Augment
from pantomim.data.layout import draw_images
from pantomim.data.transforms import View
from pantomim.engine.setup import (
    check_fit,
    describe_masks,
    in_steps,
    open_images,
)
from pantomim.methods.base import Requirements


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny_images(tmp_path / "images.npz")


def test_training_images_are_those_of_the_split_train(source: Path) -> None:
    dataset = open_images(tiny_run(source)).train
    assert (len(dataset), dataset.split) == (64, "train")


def test_a_part_is_the_same_for_all_and_balanced(source: Path) -> None:
    run = tiny_run(source)
    few = replace(run, data=replace(run.data, images=20))
    whole, part, again = (open_images(config).train for config in (run, few, few))
    assert part.names == again.names
    assert len(part) == len(set(part.names)) == part.facts.num_images == 20
    assert set(part.names) <= set(whole.names)
    assert np.bincount(part.labels).tolist() == [5, 5, 5, 5]
    same = whole.names.index(part.names[3])
    assert np.array_equal(part.read(3), whole.read(same))
    assert np.array_equal(part.array(1.0)[3], whole.read(same))
    assert part.labels[3] == whole.labels[same]


def test_a_smaller_part_lies_within_a_larger_one() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 4])
    small, large = (draw_images(84, labels, count, seed=0) for count in (9, 30))
    assert set(small) <= set(large)
    assert np.bincount(labels[small]).tolist() == [3, 3, 3]
    assert np.bincount(labels[large]).tolist() == [13, 13, 4]
    assert not np.array_equal(small, draw_images(84, labels, 9, seed=1))
    assert len(set(draw_images(84, None, 84, seed=0))) == 84


def test_more_images_than_there_are_is_refused(source: Path) -> None:
    with pytest.raises(ValueError, match=r"images must be at least 1 and at most .* 64; got 65"):
        open_images(replace(tiny_run(source), data=DataConfig(str(source), images=65)))


def test_no_source_is_refused() -> None:
    with pytest.raises(ValueError, match="must name the images; got none"):
        open_images(replace(tiny_run(Path("x")), data=DataConfig()))


def test_a_source_without_training_images_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "only_test.npz"
    np.savez(path, images=np.zeros((6, 16, 16, 3), dtype=np.uint8), split=np.array(["test"] * 6))
    with pytest.raises(ValueError, match=r"got 'train'.*test"):
        open_images(tiny_run(path))


def test_all_misfits_are_told_together(source: Path) -> None:
    dataset = open_images(tiny_run(source)).train
    with pytest.raises(ValueError, match="must be") as refusal:
        check_fit(tiny_run(source), dataset, Requirements(7, (32, 32), 32), num_processes=3)
    channels, patch, batch = str(refusal.value).splitlines()
    assert "got 7, and" in channels
    assert "has 3. Set it to 3" in channels
    assert "images of 16 pixels. Set it to 16" in patch
    assert "processes x accumulation = 3 x 1; got 16" in batch
    check_fit(tiny_run(source), dataset, Requirements(3, (16, 16), 16), num_processes=2)


def test_a_run_must_have_steps_and_be_longer_than_its_warmup() -> None:
    config = tiny_run(Path("x"), duration=Duration(epochs=0))
    with pytest.raises(ValueError, match=r"Pretrain\.duration must be at least one step; got 0 epochs"):
        in_steps(config, 5)
    assert in_steps(tiny_run(Path("x"), duration=Duration(steps=0)), 5) == (0, 0)  # its initial encoder, a baseline
    config = replace(config, duration=Duration(steps=3), optim=replace(config.optim, warmup=Duration(epochs=0.6)))
    with pytest.raises(
        ValueError, match=r"must be shorter than the run; got 0\.6 epochs of 3 steps, which is 3 of 3 steps"
    ):
        in_steps(config, 5)
    assert in_steps(config, 3) == (3, 2)


def test_a_second_view_and_a_method_that_compares_two_need_each_other(source: Path) -> None:
    config = tiny_run(source)
    dataset, takes = open_images(config).train, Requirements(3, (16, 16), 4)
    with pytest.raises(ValueError, match=r"DataConfig\.second must say how the other view .* got none"):
        check_fit(config, dataset, replace(takes, views=2), 1)
    two = replace(config, data=replace(config.data, second=View()))
    check_fit(two, dataset, replace(takes, views=2), 1)
    with pytest.raises(ValueError, match=r"DataConfig\.second must be left out, as mae looks at one view"):
        check_fit(two, dataset, takes, 1)


def test_a_method_that_compares_images_gets_its_whole_batch_at_once(source: Path) -> None:
    config, dataset = tiny_run(source), open_images(tiny_run(source)).train
    takes = Requirements(3, (16, 16), 4, whole_batch=True, gathers=True)
    check_fit(config, dataset, takes, num_processes=2)
    compiled, cut = (
        replace(config, runtime=replace(config.runtime, **x)) for x in ({"compile": True}, {"accumulation": 2})
    )
    check_fit(compiled, dataset, takes, num_processes=1)
    with pytest.raises(ValueError, match=r"RuntimeConfig\.compile must be off for mae in several processes"):
        check_fit(compiled, dataset, takes, num_processes=2)
    check_fit(compiled, dataset, replace(takes, gathers=False), num_processes=2)
    with pytest.raises(ValueError, match=r"RuntimeConfig\.accumulation must be 1 for mae"):
        check_fit(cut, dataset, takes, num_processes=1)
    check_fit(cut, dataset, replace(takes, whole_batch=False), num_processes=1)


def test_images_that_cannot_be_augmented_are_refused(tmp_path: Path) -> None:
    config = tiny_run(tiny_images(tmp_path / "gray.npz", channels=1))
    config = replace(config, data=replace(config.data, augment=Augment(grayscale=0.2)))
    with pytest.raises(ValueError, match=r"Augment\.grayscale must be left out .* 1 channel"):
        check_fit(config, open_images(config).train, Requirements(1, (16, 16), 4), 1)


def test_masks_that_are_trained_on_are_those_that_the_settings_name(tmp_path: Path) -> None:
    data = fill(tmp_path / "ade", ade20k_files(counts=(8, 4)))
    config = replace(tiny_run(data), data=DataConfig(str(data), masks=MaskConfig()), validation=Validation(0.25))
    images = open_images(config)
    assert images.masks is not None
    assert images.held_out is not None
    assert (images.masks.reduce_zero, images.masks.class_ids(), images.facts.num_images) == (True, (0, 1, 2), 8)
    assert (len(images.train), len(images.held_out)) == (6, 2), "val is the test part here"
    about = describe_masks(config.data, images.masks)
    assert (about["class_ids"], about["no_class"]) == ([1, 2, 3], 0)
    plain = DataConfig(str(masked_folder(tmp_path / "set")), masks=MaskConfig(ignore=1))
    about = describe_masks(plain, open_images(replace(tiny_run(data), data=plain)).masks)
    assert (about["class_ids"], about["no_class"]) == ([0, 2], 1)


def test_a_test_part_without_masks_does_not_keep_from_training(tmp_path: Path) -> None:
    data = masked_folder(tmp_path / "set", {"train": 6, "val": 2, "test": 2})
    shutil.rmtree(data / "masks" / "test")
    (data / "classes.json").unlink()
    config = replace(tiny_run(data), data=DataConfig(str(data), masks=MaskConfig()))
    masks = open_images(config).masks
    assert masks is not None
    assert list(masks.names.values()) == ["class 0", "class 1", "class 2"]
    shutil.rmtree(data / "masks" / "val")
    with pytest.raises(ValueError, match="has no mask in masks"):
        open_images(config)
