from functools import partial

import numpy as np
import pytest
import torch
from image_files import broken_folder, fill, png
from synthetic import write_synthetic

from pantomim.data.augment import Augment
from pantomim.data.sources import open_source
from pantomim.data.stream import Stream, evaluation_batches
from pantomim.data.transforms import Crop, View, draw_uniforms

CROP = Crop()


@pytest.fixture(scope="module")
def uniform(tmp_path_factory):
    path = write_synthetic(tmp_path_factory.mktemp("data") / "s.npz", 40, size=12, split=False)
    return str(path)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    files = {f"{c}/{k:02}.png": png(k, (9 + k % 5, 12 - k % 3)) for c in "ab" for k in range(12)}
    return str(fill(tmp_path_factory.mktemp("mixed"), files))


def stream(spec, batch_size=8, split="all", **changes):
    options = {"image_size": (8, 8), "crop": CROP, "seed": 3, "device": "cpu", "workers": 0, **changes}
    return Stream(open_source(spec, split), batch_size=batch_size, **options)


def flat(made):
    """One (step, images, ids, labels) a micro-batch."""
    return [(batch.start, batch.images, batch.ids, batch.labels) for step in made for batch in step]


def assert_same(first, second):
    for one, two in zip(flat(first), flat(second), strict=True):
        assert one[0] == two[0]
        for left, right in zip(one[1:], two[1:], strict=True):
            assert torch.equal(left, right)


@pytest.mark.parametrize("source", ["uniform", "mixed"])
def test_batches_are_images_of_the_given_size(source, request):
    made = stream(request.getfixturevalue(source))
    ((batch,),) = made.batches(0, 1)
    assert batch.images.shape == (8, 3, 8, 8)
    assert batch.images.dtype == torch.float32
    assert batch.images.min() >= 0
    assert batch.images.max() <= 1
    assert (batch.start, batch.total) == (0, 8)
    assert batch.labels.tolist() == made.dataset.labels[batch.ids.numpy()].tolist()


@pytest.mark.parametrize("source", ["uniform", "mixed"])
def test_any_step_can_be_made_again(source, request):
    spec = request.getfixturevalue(source)
    whole = list(stream(spec).batches(0, 9))
    assert_same(whole[5:9], list(stream(spec).batches(5, 9)))
    assert not torch.equal(whole[0][0].images, whole[1][0].images)
    other = list(stream(spec, seed=4).batches(0, 1))
    assert not torch.equal(whole[0][0].ids, other[0][0].ids)


def test_batches_do_not_depend_on_workers(mixed):
    alone = list(stream(mixed, workers=0).batches(2, 7))
    assert_same(alone, list(stream(mixed, workers=2).batches(2, 7)))


@pytest.mark.parametrize("source", ["uniform", "mixed"])
@pytest.mark.parametrize(("world", "micro"), [(2, 1), (1, 2), (2, 2)])
def test_rows_of_ranks_and_micro_batches_are_those_of_one_process(source, world, micro, request):
    spec = request.getfixturevalue(source)
    whole = flat(stream(spec).batches(4, 7))
    ranks = [list(stream(spec, rank=rank, world=world, micro=micro).batches(4, 7)) for rank in range(world)]
    for step in range(3):
        parts = [ranks[rank][step][part] for part in range(micro) for rank in range(world)]
        assert [part.start for part in parts] == [k * 8 // (world * micro) for k in range(world * micro)]
        assert torch.equal(torch.cat([part.images for part in parts]), whole[step][1])
        assert torch.equal(torch.cat([part.ids for part in parts]), whole[step][2])


@pytest.mark.parametrize("source", ["uniform", "mixed"])
@pytest.mark.parametrize(("world", "micro"), [(1, 1), (2, 2)])
def test_how_many_images_are_made_at_once_changes_nothing(source, world, micro, request, monkeypatch):
    options = {"batch_size": 20, "second": View(CROP, AUGMENT), "world": world, "micro": micro}
    make = partial(stream, request.getfixturevalue(source), rank=world - 1, **options)
    whole = list(make().batches(1, 3))
    monkeypatch.setattr("pantomim.data.stream.AT_ONCE", 3)
    parts = make()
    assert max(parts.rows(part).stop - parts.rows(part).start for part in range(7 * micro)) == 3
    cut = list(parts.batches(1, 3))
    assert_same(whole, cut)
    for (one, *_), (other, *_) in zip(whole, cut, strict=True):
        torch.testing.assert_close(one.second, other.second)
        assert len(one) == 20 // (world * micro)


@pytest.mark.parametrize("source", ["uniform", "mixed"])
def test_a_second_view_leaves_the_first_as_it_is_and_is_drawn_apart(source, request):
    spec = request.getfixturevalue(source)
    alone = list(stream(spec).batches(2, 4))
    two = list(stream(spec, second=View(CROP)).batches(2, 4))
    assert_same(alone, two)
    for (one,), (both,) in zip(alone, two, strict=True):
        assert one.second is None
        assert both.second.shape == both.images.shape
        assert both.second.min() >= 0
        assert both.second.max() <= 1
        assert not torch.isclose(both.images, both.second).flatten(1).all(dim=1).any()


@pytest.mark.parametrize("source", ["uniform", "mixed"])
def test_two_views_that_are_not_cropped_are_the_same_image(source, request):
    whole = Crop(kind="none", flip=False)
    ((batch,),) = stream(request.getfixturevalue(source), crop=whole, second=View(whole)).batches(0, 1)
    assert torch.equal(batch.images, batch.second)


@pytest.mark.parametrize("source", ["uniform", "mixed"])
@pytest.mark.parametrize(("world", "micro", "workers"), [(2, 1, 0), (1, 2, 0), (2, 2, 1)])
def test_second_views_do_not_depend_on_processes_and_workers(source, world, micro, workers, request):
    spec, options = request.getfixturevalue(source), {"second": View(Crop(scale=(0.3, 0.9)))}
    whole = [batch for (batch,) in stream(spec, **options).batches(4, 7)]
    options |= {"world": world, "micro": micro, "workers": workers}
    ranks = [list(stream(spec, rank=rank, **options).batches(4, 7)) for rank in range(world)]
    for step in range(3):
        parts = [ranks[rank][step][part] for part in range(micro) for rank in range(world)]
        assert torch.equal(torch.cat([part.second for part in parts]), whole[step].second)
        assert torch.equal(torch.cat([part.images for part in parts]), whole[step].images)


AUGMENT = Augment(jitter=(0.4, 0.4, 0.2, 0.1), grayscale=0.2, blur=0.5, rand_augment=2, erasing=0.3)


@pytest.mark.parametrize("source", ["uniform", "mixed"])
@pytest.mark.parametrize(("world", "micro", "workers"), [(2, 1, 0), (2, 2, 1)])
def test_augmented_views_do_not_depend_on_processes_and_workers(source, world, micro, workers, request):
    spec, options = request.getfixturevalue(source), {"augment": AUGMENT, "second": View(CROP, Augment(solarise=0.5))}
    whole = [batch for (batch,) in stream(spec, **options).batches(4, 6)]
    plain = [batch for (batch,) in stream(spec).batches(4, 6)]
    options |= {"world": world, "micro": micro, "workers": workers}
    ranks = [list(stream(spec, rank=rank, **options).batches(4, 6)) for rank in range(world)]
    for step in range(2):
        assert torch.equal(whole[step].ids, plain[step].ids)
        assert not torch.equal(whole[step].images, plain[step].images)
        parts = [ranks[rank][step][part] for part in range(micro) for rank in range(world)]
        for name in ("images", "second"):
            made = torch.cat([getattr(part, name) for part in parts])
            torch.testing.assert_close(made, getattr(whole[step], name), atol=1e-5, rtol=0)


def test_two_augmented_views_of_an_uncropped_image_do_not_share_memory(uniform):
    whole = Crop(kind="none", flip=False)
    made = stream(uniform, image_size=(12, 12), crop=whole, second=View(whole, Augment(solarise=1.0)))
    ((batch,),) = made.batches(0, 1)
    expected = made.dataset.array(1.0)[batch.ids.numpy()] / np.float32(255)
    np.testing.assert_array_equal(batch.images.numpy(), expected)
    torch.testing.assert_close(batch.second, torch.where(batch.images >= 0.5, 1 - batch.images, batch.images))


def test_draws_of_views_steps_and_seeds_all_differ():
    drawn = [draw_uniforms(2, seed, step, view) for seed in range(3) for step in range(3) for view in range(3)]
    assert len({array.tobytes() for array in drawn}) == 27
    np.testing.assert_array_equal(draw_uniforms(2, 1, 2), draw_uniforms(2, 1, 2, view=0))
    first = np.random.default_rng(np.random.SeedSequence([1, 2, 2])).random((2, 23))
    np.testing.assert_array_equal(draw_uniforms(2, 1, 2), first)  # as runs before second views had it


def test_an_epoch_passes_every_image_once(uniform):
    made = stream(uniform)
    assert made.steps_per_epoch == 5
    for epoch in (0, 1, 7):
        ids = np.concatenate([made.ids(step) for step in range(epoch * 5, epoch * 5 + 5)])
        assert sorted(ids.tolist()) == list(range(40))
    assert made.ids(0).tolist() != made.ids(5).tolist()


def test_the_last_incomplete_batch_is_left_out(uniform):
    made = stream(uniform, batch_size=12)
    assert made.steps_per_epoch == 3
    assert len({*np.concatenate([made.ids(step) for step in range(3)]).tolist()}) == 36


def test_a_set_smaller_than_a_batch_is_passed_several_times(uniform):
    made = stream(uniform, batch_size=100)
    assert made.steps_per_epoch == 1
    ids = np.concatenate([made.ids(step) for step in range(6)])
    assert np.bincount(ids).tolist() == [15] * 40
    for first in range(0, 600, 40):
        assert sorted(ids[first : first + 40].tolist()) == list(range(40))
    ((batch,),) = made.batches(3, 4)
    assert batch.images.shape == (100, 3, 8, 8)


def test_the_path_by_files_gives_the_images_of_the_path_by_array(tmp_path):
    spec = str(fill(tmp_path, {f"{k:02}.png": png(k, (16, 16)) for k in range(12)}))
    ((held,),) = stream(spec).batches(0, 1)
    ((decoded,),) = stream(spec, memory_gib=1e-9).batches(0, 1)
    assert torch.equal(held.ids, decoded.ids)
    assert (held.images - decoded.images).abs().max() <= 6 / 255  # 8-bit rounding of the files' path


def test_without_crop_and_flip_images_stay_as_they_are(uniform):
    made = stream(uniform, image_size=(12, 12), crop=Crop(kind="none", flip=False))
    ((batch,),) = made.batches(0, 1)
    expected = made.dataset.array(1.0)[batch.ids.numpy()] / np.float32(255)
    np.testing.assert_array_equal(batch.images.numpy(), expected.astype(np.float32))


def test_signed_reflectances_are_not_clipped(tmp_path):
    images = np.zeros((8, 12, 8, 8), np.int16)
    images[:, 0], images[:, 1] = -300, 12_000
    np.savez(tmp_path / "a.npz", images=images)
    ((batch,),) = stream(str(tmp_path / "a.npz")).batches(0, 1)
    assert batch.images.shape == (8, 12, 8, 8)
    torch.testing.assert_close(batch.images[:, 0], torch.full((8, 8, 8), -0.03))
    torch.testing.assert_close(batch.images[:, 1], torch.full((8, 8, 8), 1.2))
    assert batch.labels is None


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("memory_gib", [1e-9, 1.0])
def test_a_broken_image_is_replaced_by_the_next_healthy_one(tmp_path, workers, memory_gib):
    made = stream(broken_folder(tmp_path, 120, 1), batch_size=60, workers=workers, memory_gib=memory_gib)
    ids = np.concatenate([batch.ids.numpy() for step in made.batches(0, 2) for batch in step])
    assert [broken.name for broken in made.dataset.broken] == ["0003.png"]
    assert np.bincount(ids, minlength=120)[[2, 3, 4]].tolist() == [1, 0, 2]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("num_broken", [3, 150])
def test_too_many_broken_images_stop_the_stream_with_the_list_alone(tmp_path, workers, num_broken):
    spec = broken_folder(tmp_path, 150 if num_broken == 3 else 0, num_broken)
    made = stream(spec, batch_size=50, workers=workers, memory_gib=1e-9)
    with pytest.raises(ValueError, match=r"^Dataset.broken must stay within 1 %") as stopped:
        list(made.batches(0, 3))
    assert "Traceback" not in str(stopped.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_broken_images_stop_an_evaluation_with_the_list_alone(tmp_path, workers):
    dataset = open_source(broken_folder(tmp_path, 150, 3), "all")
    with pytest.raises(ValueError, match=r"^Dataset.broken must stay within 1 %"):
        list(evaluation_batches(dataset, (8, 8), 20, "cpu", workers=workers, memory_gib=1e-9))


def test_starting_the_workers_draws_nothing_from_the_global_generator(mixed):
    state = torch.get_rng_state()
    list(stream(mixed, workers=1).batches(0, 1))
    assert torch.equal(state, torch.get_rng_state())


def test_waiting_is_measured(mixed):
    made = stream(mixed)
    assert made.wait_s == 0
    list(made.batches(0, 2))
    assert made.wait_s > 0


def test_a_batch_size_that_cannot_be_shared_is_refused(uniform):
    with pytest.raises(ValueError, match=r"Stream.batch_size must be a multiple of accumulation x processes = 3 x 1"):
        stream(uniform, micro=3)


@pytest.mark.parametrize("source", ["uniform", "mixed"])
def test_evaluation_passes_every_image_once_in_order(source, request):
    dataset = open_source(request.getfixturevalue(source), "all")
    made = list(evaluation_batches(dataset, (8, 8), 7, "cpu", workers=0))
    assert np.concatenate([ids for _, ids in made]).tolist() == list(range(len(dataset)))
    assert all(images.shape == (len(ids), 3, 8, 8) for images, ids in made)


def test_evaluation_of_chosen_images_equals_that_of_all(uniform):
    dataset = open_source(uniform, "all")
    ((everything, _),) = evaluation_batches(dataset, (12, 12), 100, "cpu")
    ((some, ids),) = evaluation_batches(dataset, (12, 12), 100, "cpu", indices=np.array([5, 1, 30]))
    assert ids.tolist() == [5, 1, 30]
    assert torch.equal(some, everything[[5, 1, 30]])


def test_evaluation_does_not_depend_on_workers(mixed):
    dataset = open_source(mixed, "all")
    alone = list(evaluation_batches(dataset, (8, 8), 3, "cpu", workers=0))
    for (left, _), (right, _) in zip(alone, evaluation_batches(dataset, (8, 8), 3, "cpu", workers=2), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("memory_gib", [1e-9, 1.0])
def test_evaluation_leaves_broken_images_out(tmp_path, memory_gib):
    dataset = open_source(broken_folder(tmp_path, 120, 1), "all")
    ids = np.concatenate([ids for _, ids in evaluation_batches(dataset, (8, 8), 50, "cpu", memory_gib=memory_gib)])
    assert ids.tolist() == [k for k in range(120) if k != 3]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("augment", [None, Augment(jitter=(0.4, 0.4, 0.2, 0.1), grayscale=0.2, blur=0.5, solarise=0.2)])
def test_batches_on_the_gpu_equal_those_on_the_cpu_without_a_wait(uniform, augment):
    on_cpu = list(stream(uniform, augment=augment).batches(0, 4))
    made = stream(uniform, augment=augment, device="cuda")
    list(made.batches(0, 1))  # first use of the libraries
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu = list(made.batches(0, 4))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (cpu,), (gpu,) in zip(on_cpu, on_gpu, strict=True):
        torch.testing.assert_close(gpu.images.cpu(), cpu.images, rtol=0, atol=1e-5)
        assert torch.equal(gpu.ids.cpu(), cpu.ids)


def test_repeated_images_come_in_turn_and_are_no_neighbours(uniform):
    made = stream(uniform, batch_size=12, repeats=3)
    steps = [made.ids(step) for step in range(made.steps_per_epoch)]
    for ids in steps:
        assert sorted(np.bincount(ids)[np.unique(ids)]) == [3] * 4
        assert (ids[0::2] != ids[1::2]).all(), "mixing would mix an image with itself"
    assert len({int(image) for ids in steps for image in ids}) == 12, "an epoch shows a third of the images"
    (batch,) = next(iter(made.batches(0, 1)))
    first, second = np.flatnonzero(batch.ids.numpy() == batch.ids[0].item())[:2]
    assert not torch.equal(batch.images[first], batch.images[second]), "each is cut anew"
