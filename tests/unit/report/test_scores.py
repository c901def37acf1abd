import numpy as np
import pytest

from pantomim.report.scores import Score, label, noise, read_result, read_results, summary, verdict

NBSP = "\N{NO-BREAK SPACE}"


def result(num_test=1000, stem="linear-mnist", **scores):
    values = {who: score if isinstance(score, dict) else {"top1": score} for who, score in scores.items()}
    found = read_result(stem, {"protocol": stem.partition("-")[0], "dataset": "mnist", "num_test": num_test, **values})
    assert found is not None
    return found


def plain(text: str) -> str:
    return text.replace(NBSP, " ")


def test_ahead_of_both():
    text = plain(summary([result(trained=0.93, untrained=0.80, pixels=0.85)]))
    assert text == (
        "The trained encoder scores 93.0 %, 13.0 points above the same encoder untrained "
        "and 8.0 points above raw pixels."
    )


@pytest.mark.parametrize(("untrained", "pixels"), [(0.80, 0.97), (0.97, 0.80), (0.97, 0.97)])
def test_behind_anyone_is_not_ahead(untrained, pixels):
    found = result(trained=0.90, untrained=untrained, pixels=pixels)
    assert not found.is_ahead
    assert "is not ahead" in summary([found])
    assert "7.0 points below" in plain(summary([found]))


def test_a_lead_that_can_be_chance_is_not_claimed():
    found = result(trained=0.90, untrained=0.70, pixels=0.895)
    assert found.rank("pixels") == 0
    assert "is not clearly ahead" in summary([found])
    assert "which can be chance" in summary([found])
    assert "can be chance" in verdict(found)
    assert result(num_test=100_000, trained=0.90, untrained=0.70, pixels=0.895).is_ahead


def test_equal_scores_are_level():
    assert "level with raw pixels" in verdict(result(num_test=None, trained=0.9, untrained=0.7, pixels=0.9))


def test_other_results_that_disagree_are_named():
    good = result(trained=0.93, untrained=0.80, pixels=0.85)
    bad = result(stem="knn-mnist", trained=0.80, untrained=0.80, pixels=0.85)
    assert "not clearly ahead of both in: k-nearest neighbours" in summary([good, bad])
    assert "k-nearest" not in summary([good, good])


def test_nothing_to_compare_with():
    assert "nothing measured beside it" in verdict(result(trained=0.9))
    assert "nothing to compare" in summary([result(trained=0.9)])
    assert "no score of the trained encoder" in verdict(result(untrained=0.9, pixels=0.8))


def test_paired_draws_count_more_than_their_spread():
    def draws(*values):
        return {"top1": sum(values) / len(values), "top1_std": 0.05, "draws": list(values)}

    paired = result(num_test=None, trained=draws(0.7, 0.8, 0.75), untrained=draws(0.65, 0.75, 0.70))
    assert paired.is_ahead, "always five points apart, however far the draws lie apart"
    mixed = result(num_test=None, trained=draws(0.7, 0.8, 0.75), untrained=draws(0.75, 0.65, 0.70))
    assert not mixed.is_ahead


def test_best_is_a_tie_where_the_printed_digits_are_equal():
    assert result(trained=0.90004, untrained=0.5, pixels=0.90001).headline.best == {"trained", "pixels"}
    assert result(trained=0.9).headline.best == set()


def test_std_is_printed_and_is_no_row():
    found = result(trained={"top1": 0.76, "top1_std": 0.012}, untrained=0.7)
    assert plain(found.headline.scores["trained"].text) == "76.0 ± 1.2 %"
    assert [row.metric for row in found.rows] == ["top1"]


def test_choices_and_settings_are_no_scores():
    trained = {"top1": 0.9, "view": "mean", "chosen": {"mean": {"k": 5, "lr": 0.1}}, "validation": {"mean": 0.8},
               "top1_class": 0.8, "top1_mean": 0.9, "by_k": {"mean": {"k5": 0.9, "k10": 0.88}}}  # fmt: skip
    found = result(trained=trained, untrained={**trained, "top1": 0.5}, pixels={"top1": 0.4, "top1_pixels": 0.4})
    assert [row.metric for row in found.main_rows] == ["top1", "top1_class", "top1_mean"]
    assert [row.metric for row in found.other_rows] == ["top1_pixels", "by_k.mean.k5", "by_k.mean.k10"]


def test_labels():
    assert label("top1") == "top-1 accuracy"
    assert label("top1_class") == "top-1 accuracy, class token"
    assert label("by_k.mean.k10") == "top-1 accuracy, mean of patches, k = 10"
    assert label("something_else") == "something else"


def test_the_order_does_not_look_at_scores():
    one = {"trained": {"top1": 0.1}, "pixels": {"top1": 0.9}}
    two = {"trained": {"top1": 0.9}, "pixels": {"top1": 0.1}}
    few = {**two, "protocol": "linear", "labels_per_class": 10}
    found = read_results({"finetune-x": two, "knn-x": two, "linear-10-x": few, "linear-x": one, "notes": {"a": 1}})
    assert [result.stem for result in found] == ["linear-x", "knn-x", "finetune-x", "linear-10-x"]
    assert found[-1].protocol == "Linear probe, 10 labels per class"


@pytest.mark.parametrize("trained", [None, [], "0.9", {}, {"top1": "high"}, {"top1": True}])
def test_files_without_scores_are_left_out(trained):
    assert read_result("linear-x", {"trained": trained}) is None


def segmentation(**scores):
    values = {who: {"miou": miou, "miou_error": 0.004, "pixel_accuracy": 0.8, "iou": {"bag": 0.1, "hair": miou},
                    "chosen": {"lr": 3.0}, "validation": {"miou": 0.3}} for who, miou in scores.items()}  # fmt: skip
    return result(num_test=200, stem="segmentation-ccp", **values)


def test_segmentation_is_told_by_mean_iou():
    found = segmentation(trained=0.229, untrained=0.204, pixels=0.069)
    assert [row.label for row in found.main_rows] == ["mean IoU", "pixel accuracy"]
    assert [row.label for row in found.other_rows] == ["IoU, bag", "IoU, hair"]
    text = plain(verdict(found))
    assert text.startswith("Linear segmentation on mnist: 22.9 % mean IoU, 2.5 points above the same encoder untrained")
    assert "top-1" not in text


def test_chance_in_mean_iou_goes_by_its_own_error_and_not_by_the_number_of_images():
    found = segmentation(trained=0.229, untrained=0.204, pixels=0.22)
    assert found.noise("pixels") == pytest.approx(2 * 0.004 * 2**0.5)
    assert found.rank("untrained") == 1
    assert found.rank("pixels") == 0
    bare = result(num_test=200, stem="segmentation-ccp", trained={"miou": 0.23}, untrained={"miou": 0.2})
    assert bare.noise("untrained") is None


def test_the_images_that_were_scored_are_counted():
    """Not those by which settings were chosen."""
    about = {"protocol": "linear", "dataset": "x", "data": {"num_train": 9000, "num_val": 50, "num_test": 2000}}
    found = read_result("linear-x", {**about, "trained": {"top1": 0.8}})
    assert found is not None
    assert found.num_images == 2000


@pytest.mark.parametrize(("draws", "factor"), [(3, 4.303), (5, 2.776)])
def test_few_draws_make_an_interval_wider(draws, factor):
    values = [0.5 + 0.01 * (-1) ** n for n in range(draws)]
    pair = Score(0.5, draws=tuple(values)), Score(0.4, draws=(0.4,) * draws)
    assert noise(pair, None) == pytest.approx(factor * np.std(values, ddof=1) / draws**0.5, rel=1e-3)
