import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, jaccard_score

from pantomim.core.scores import class_accuracy, count_pixels, intersection_over_union, means, pixel_accuracy


def drawn(num_classes=5, ignore=255):
    """Labels of which some pixels have no class, and guesses that are often right."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, num_classes, (6, 9, 7), generator=generator)
    right = torch.rand(truth.shape, generator=generator) < 0.6
    without = torch.rand(truth.shape, generator=generator) < 0.1
    return torch.where(right, truth, num_classes - 1), truth.masked_fill(without, ignore)


def test_counts_by_hand():
    guesses = torch.tensor([[[0, 0], [1, 2]], [[1, 1], [1, 0]]])
    labels = torch.tensor([[[0, 1], [1, 255]], [[1, 1], [0, 0]]])
    counts = count_pixels(guesses, labels, 4)
    assert counts[0].tolist() == [[1, 1, 0, 0], [2, 1, 0, 0], [1, 2, 0, 0]], "right, predicted, labelled"
    assert counts[1].tolist() == [[1, 2, 0, 0], [1, 3, 0, 0], [2, 2, 0, 0]]
    iou = intersection_over_union(counts.sum(dim=0))
    assert iou[:2].tolist() == pytest.approx([2 / 4, 3 / 5])
    assert iou[2:].isnan().all(), "a pixel without a class is no prediction"


def test_scores_are_those_of_scikit_learn():
    guesses, labels = drawn()
    counts, kept = count_pixels(guesses, labels, 5).sum(dim=0), labels != 255
    reference = jaccard_score(labels[kept], guesses[kept], average=None)
    torch.testing.assert_close(intersection_over_union(counts), torch.from_numpy(reference))
    assert pixel_accuracy(counts).item() == pytest.approx(accuracy_score(labels[kept], guesses[kept]))
    recall = balanced_accuracy_score(labels[kept], guesses[kept])
    assert class_accuracy(counts).nanmean().item() == pytest.approx(recall)
    found = {"miou": reference.mean(), "mean_accuracy": recall, "pixel_accuracy": pixel_accuracy(counts).item()}
    assert means(counts) == pytest.approx(found)


def test_a_class_that_is_only_predicted_counts_as_nothing_and_one_that_is_neither_is_left_out():
    counts = torch.tensor([[3, 0, 0, 0], [4, 1, 0, 0], [5, 0, 2, 0]])  # right, predicted, labelled
    iou, accuracy = intersection_over_union(counts), class_accuracy(counts)
    assert iou[:3].tolist() == [0.5, 0.0, 0.0]
    assert iou.nanmean() == pytest.approx(0.5 / 3)
    assert accuracy.isnan().tolist() == [False, True, False, True]
    assert accuracy.nanmean() == pytest.approx(0.3)


def test_images_are_counted_together_and_not_averaged():
    guesses, labels = drawn()
    counts = count_pixels(guesses, labels, 5)
    torch.testing.assert_close(
        counts.sum(dim=0), count_pixels(guesses.flatten(0, 1)[None], labels.flatten(0, 1)[None], 5)[0]
    )
    whole, image_by_image = (intersection_over_union(each).nanmean() for each in (counts.sum(dim=0), counts))
    assert abs(whole - image_by_image) > 1e-4


@pytest.mark.parametrize("part", ["guesses", "labels"])
def test_classes_that_there_are_not(part):
    values = {"guesses": torch.zeros(2, 3, 3, dtype=torch.long), "labels": torch.zeros(2, 3, 3, dtype=torch.long)}
    values[part][0, 1, 1] = 4  # uncaught, it would count as class 0 of the next image
    with pytest.raises(ValueError, match=rf"count_pixels.{part} must be classes from 0 to 3, or `ignore`; got \[4\]"):
        count_pixels(**values, num_classes=4)
