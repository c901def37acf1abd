"""What is done to an image is a function of (seed, step, view) and its row, and of nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pictures import pictures

from pantomim.data.augment import Augment, augmented, draw_augment
from pantomim.data.colours import gray

EVERYTHING = Augment(
    jitter=(0.4, 0.4, 0.2, 0.1),
    jitter_probability=0.8,
    grayscale=0.2,
    blur=0.5,
    solarise=0.2,
    rand_augment=2,
    erasing=0.25,
)


def drawn(augment, total=8, seed=0, step=0, view=0, size=(20, 24)):
    return draw_augment(augment, total, size, seed, step, view)


def test_nothing_is_done_unless_asked():
    images = pictures()
    assert not Augment().active
    assert torch.equal(augmented(images, drawn(Augment(), 4), Augment()), images)
    assert not Augment(jitter=(0.4, 0.4, 0.4, 0.0), jitter_probability=0.0).active
    for change in ({"jitter": (0, 0, 0, 0.1)}, {"blur": 0.1}, {"erasing": 0.1}, {"rand_augment": 1}):
        assert Augment(**change).active


def test_the_given_images_stay_as_they_are_and_the_same_draws_give_the_same_images():
    images = pictures(8)
    before = images.clone()
    made = augmented(images, drawn(EVERYTHING), EVERYTHING)
    assert torch.equal(images, before)
    assert torch.equal(made, augmented(images, drawn(EVERYTHING), EVERYTHING))
    for other in ({"seed": 1}, {"step": 1}, {"view": 1}):
        assert not torch.equal(made, augmented(images, drawn(EVERYTHING, **other), EVERYTHING))


def test_rows_do_not_depend_on_the_rows_beside_them():
    images, draws = pictures(12), drawn(EVERYTHING, 12)
    whole = augmented(images, draws, EVERYTHING)
    parts = [augmented(images[k : k + 3], draws.rows(slice(k, k + 3)), EVERYTHING) for k in range(0, 12, 3)]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-6, rtol=0)


def test_values_stay_in_range_but_for_wiped_out_parts():
    augment = replace(EVERYTHING, erasing=0.0)
    made = augmented(pictures(64), drawn(augment, 64), augment)
    assert made.min() >= 0
    assert made.max() <= 1


def test_shares_are_those_asked_for():
    draws = drawn(EVERYTHING, 4000)
    jittered = (draws.jitter_order >= 0).all(axis=1)
    assert ((draws.jitter_order >= 0).any(axis=1) == jittered).all()
    assert jittered.mean() == pytest.approx(0.8, abs=0.04)
    assert draws.grayscale.mean() == pytest.approx(0.2, abs=0.04)
    assert (draws.sigma > 0).mean() == pytest.approx(0.5, abs=0.04)
    assert draws.sigma[draws.sigma > 0].min() >= 0.1
    assert draws.sigma.max() <= 2.0
    assert draws.solarise.mean() == pytest.approx(0.2, abs=0.04)
    assert (draws.erased[:, 2] > 0).mean() == pytest.approx(0.25, abs=0.04)
    for place in range(4):  # every order is as likely
        first = np.bincount(draws.jitter_order[jittered, place], minlength=4) / jittered.sum()
        assert np.abs(first - 0.25).max() < 0.04
    np.testing.assert_allclose(draws.jitter.min(axis=0), [0.6, 0.6, 0.8, -0.1], atol=0.002)
    np.testing.assert_allclose(draws.jitter.max(axis=0), [1.4, 1.4, 1.2, 0.1], atol=0.002)


def test_rand_augment_draws_operations_levels_and_directions():
    draws = drawn(EVERYTHING, 4000)
    assert draws.operations.shape == (4000, 2)
    assert (draws.operations < 0).mean() == pytest.approx(0.5, abs=0.03)
    counts = np.bincount(draws.operations[draws.operations >= 0], minlength=15)
    assert counts.min() > 0.8 * counts.mean()
    assert draws.levels.max() == 10.0
    assert draws.levels.mean() == pytest.approx(9.0, abs=0.05)
    assert draws.levels.std() == pytest.approx(0.5, abs=0.05)
    assert draws.signs.mean() == pytest.approx(0.0, abs=0.05)


def test_another_setting_moves_no_other_draw():
    one, two = drawn(EVERYTHING), drawn(replace(EVERYTHING, rand_augment=0, blur=0.0, grayscale=1.0))
    np.testing.assert_array_equal(one.jitter_order, two.jitter_order)
    np.testing.assert_array_equal(one.erased, two.erased)


def test_wiped_out_parts_lie_within_and_are_noise_of_the_given_mean_and_std():
    augment = Augment(erasing=1.0, mean=(0.2, 0.5, 0.7), std=(0.1, 0.2, 0.3))
    draws = drawn(augment, 400, size=(32, 40))
    top, left, height, width = draws.erased.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 32).all()
    assert (left + width <= 40).all()
    share = height * width / (32 * 40)
    assert share.min() > 0.015
    assert share.max() < 0.36
    images = torch.full((400, 3, 32, 40), 9.0)
    made = augmented(images, draws, augment)
    assert ((made != 9.0).all(dim=1).sum(dim=(1, 2)).numpy() == height * width).all()
    for channel in range(3):
        values = made[:, channel][made[:, channel] != 9.0]
        assert values.mean() == pytest.approx(augment.mean[channel], abs=0.01)
        assert values.std() == pytest.approx(augment.std[channel], rel=0.02)


def test_only_what_is_drawn_is_done():
    images = pictures(6)
    for augment, expected in (
        (Augment(grayscale=1.0), gray(images).expand_as(images)),
        (Augment(solarise=1.0), torch.where(images >= 0.5, 1 - images, images)),
    ):
        assert torch.equal(augmented(images, drawn(augment, 6), augment), expected)
    half = Augment(grayscale=0.5)
    draws = drawn(half, 6)
    untouched = torch.from_numpy(np.flatnonzero(~draws.grayscale))
    assert 0 < len(untouched) < 6
    assert torch.equal(augmented(images, draws, half)[untouched], images[untouched])


def test_steps_are_taken_in_the_order_drawn():
    augment = Augment(jitter=(0.0, 0.9, 0.9, 0.0))
    images, draws = pictures(1), drawn(augment, 1)
    orders = [replace(draws, jitter_order=np.array([order])) for order in ([1, 2, -1, -1], [2, 1, -1, -1])]
    one, two = (augmented(images, order, augment) for order in orders)
    assert not torch.allclose(one, two, atol=1e-4)


def test_one_channel_is_jittered_and_blurred_but_has_no_colours():
    augment = Augment(jitter=(0.4, 0.4, 0.0, 0.0), blur=1.0, solarise=0.5, erasing=0.5, mean=(0.1,), std=(0.3,))
    assert augment.problems(1, "uint8") == []
    assert augmented(torch.rand(4, 1, 9, 9), drawn(augment, 4, size=(9, 9)), augment).shape == (4, 1, 9, 9)


@pytest.mark.parametrize(
    ("augment", "channels", "dtype", "words"),
    [
        (Augment(grayscale=0.2, rand_augment=2), 12, "uint8", "grayscale, rand_augment must be left out .* 12 channel"),
        (Augment(jitter=(0, 0, 0.4, 0)), 1, "uint8", "saturation and hue must be left out"),
        (Augment(jitter=(0.4, 0, 0, 0)), 3, "float32", r"values are not in \[0, 1\]; got float32"),
        (Augment(erasing=0.25), 1, "uint8", r"mean and std must have a value for each of the 1 channel"),
    ],
)
def test_images_that_cannot_go_through_it_are_refused(augment, channels, dtype, words):
    import re

    (problem,) = augment.problems(channels, dtype)
    assert re.search(words, problem)
    assert augment.problems(3, "uint8") == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"grayscale": 1.5},
        {"jitter": (0.4, 0.4, 0.4, 0.6)},
        {"jitter": (-0.1, 0, 0, 0)},
        {"blur_sigma": (2.0, 0.1)},
        {"rand_augment": -1},
        {"rand_magnitude": 11},
        {"mean": (0.5,)},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r"^Augment\."):
        Augment(**wrong)
