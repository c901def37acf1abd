"""The demo: an encoder that learned without labels, fine-tuned on a few of them, beside contenders without it.

All contenders get the same labels and the same test images, draw by draw, so that differences are paired. What is done
lies in run folders, so that a demo that was killed continues where it was.
"""

import itertools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool

from pantomim import verbs
from pantomim.analysis.neighbours import Neighbours
from pantomim.analysis.pictures import PictureRows, Row, read_images
from pantomim.analysis.reconstructions import Reconstruct, finding
from pantomim.analysis.views import write_rows_of, write_views
from pantomim.core.files import replace_file
from pantomim.core.frozen import frozen
from pantomim.core.processes import side_by_side
from pantomim.core.ranges import AtLeastOne
from pantomim.data.pictures import to_picture
from pantomim.data.sources import open_source
from pantomim.data.stats import channel_stats
from pantomim.evaluate.classification import TrainedClassifier, difference_over_draws, hits_of
from pantomim.evaluate.features import pixel_table
from pantomim.evaluate.few_labels import choose
from pantomim.evaluate.parts import open_labelled
from pantomim.report.charts import Chart, learning_chart
from pantomim.report.folder import read_run
from pantomim.report.html import fill_template

LOG = logging.getLogger(__name__)
CONTENDERS = {"pretrained": "pre-trained", "scratch": "from scratch", "pixels": "with raw pixels"}
ALONE, SHOWN = "Digits that only the pre-trained network gets right", 24

# Chosen on training digits alone: fine-tuned on ten a class, scored on a thousand others (docs/results/demo.md).
FINETUNING: dict[str, Any] = {
    "batch_size": 32,
    "optim.base_lr": 1.6e-2,  # 2e-3 for a batch of 32
    "validation.share": 0.0,  # so few labels are all learned from
    "data.crop.scale": (0.75, 1.0),
    "data.crop.flip": False,  # a mirrored digit is none
    "data.augment.rotation": 15.0,
    "data.augment.mean": (0.0,),
    "data.augment.std": (1.0,),
    "method.encoder.drop_path": 0.0,
}
# Photographs as they are: predicted colours, not those of each patch standardised.
PHOTOS: dict[str, Any] = {
    "batch_size": 32,
    "optim.base_lr": 8e-3,
    "method.target.normalise": "none",
    "method.masker.ratio": 0.5,  # at 0.75 so short a run predicts flat colours
    "data.crop.scale": (0.6, 1.0),
}
BESIDE: dict[str, Any] = {"runtime.threads": 1, "runtime.compile": False}  # of several short runs at once


@frozen
class Demo:
    """What is asked for."""

    out: Path
    labels_per_class: tuple[AtLeastOne, ...] = (10,)
    draws: AtLeastOne = 3
    seed: int = 0
    steps: AtLeastOne | None = None
    finetune_steps: AtLeastOne | None = None

    def settings(self, steps: int, own: Mapping[str, Any]) -> dict[str, Any]:
        """Of a run of so many steps."""
        always = {"runtime.seed": self.seed, "runtime.tracker": "none", "optim.warmup.steps": steps // 10}
        return {**always, "duration.steps": steps, **own}


@dataclass(frozen=True)
class Contest:
    """Which test images each contender classifies rightly, trained on the same labels; a row a draw of these."""

    labels: int  # of all classes
    labels_per_class: int | None
    hits: Mapping[str, Bool[np.ndarray, "draws n"]]

    def errors(self, who: str) -> float:
        """The share of test images that it gets wrong, mean over draws."""
        return float(1.0 - self.hits[who].mean())

    def ahead_of(self, rival: str) -> tuple[float, float, float]:
        """How many fewer errors the pre-trained one makes, as a share, and the paired 95 % interval."""
        found = difference_over_draws(self.hits["pretrained"], self.hits[rival])
        return found["difference"], *found["interval"]

    @property
    def rivals(self) -> list[str]:
        """Of the pre-trained one."""
        return [who for who in CONTENDERS if who in self.hits and who != "pretrained"]

    @property
    def sentence(self) -> str:
        """The result, by the numbers alone: where an interval is not above zero, that is said."""
        shares = [100 * self.errors(who) for who in ("pretrained", *self.rivals)]
        digits = 0 if min(shares) >= 10 and float(np.diff(sorted(shares)).min()) >= 1 else 1
        ours, *others = (f"{share:.{digits}f}" for share in shares)
        against, won = [], True
        for rival, errors in zip(self.rivals, others, strict=True):
            ahead, low, high = (100 * share for share in self.ahead_of(rival))
            won &= low > 0
            verdict = "" if low > 0 or high < 0 else ", which can be chance"
            if ahead < 0:
                low, high = -high, -low  # of how many more
            apart = f"{abs(ahead):.1f} points {'fewer' if ahead >= 0 else 'more'}{verdict}"
            interval = f"paired 95 % interval {low:.1f} to {high:.1f}".replace("-", "−")
            against.append(f"{errors} {CONTENDERS[rival]} ({apart}; {interval})")
        return (
            f"With {self.labels:,} labels: {ours} errors in 100 {'instead of' if won else 'against'} "
            f"{' and '.join(against)}."
        )


def show(asked: Demo) -> tuple[Path, str]:
    """Digits: what pre-training is worth with few labels; photographs: what it makes of masked patches."""
    log, photos, digits, untrained = (asked.out / name for name in ("log.txt", "photos", "digits", "untrained"))
    LOG.info("1/3  Pre-training on 4,000 digits and on crops of photographs; no label is used. Beside it, learning to")
    LOG.info("     classify digits from a few labels without pre-training. Log: %s", log)
    verbs.pretrain("mae_micro_mnist", out=untrained, settings=asked.settings(0, {}))  # says how large a network is
    settings = asked.settings(asked.steps or 3000, BESIDE), asked.settings(asked.steps or 500, PHOTOS | BESIDE)
    jobs: dict[Any, Callable[[], Any]] = {
        digits: partial(verbs.pretrain, "mae_micro_mnist", out=digits, settings=settings[0]),
        photos: partial(verbs.pretrain, "mae", data="sample_photos", out=photos, size="micro", settings=settings[1]),
    }
    learned = list(itertools.product(asked.labels_per_class, range(asked.draws), CONTENDERS))
    encoders = {"pretrained": digits, "scratch": untrained, "pixels": untrained}
    jobs |= {each: partial(right_digits, asked, encoders[each[-1]], *each) for each in learned}
    # What needs the encoder of digits, and of the rest so much that two cores are busy to the end.
    second = [each for each in learned if each[-1] == "pretrained" or each[1:] == (asked.draws - 1, "scratch")]
    first = [each for each in jobs if each not in second]
    found = dict(zip(first, side_by_side([jobs[each] for each in first], "runs", log), strict=True))
    LOG.info("2/3  Learning the same from the same labels, with pre-training.")
    found |= zip(second, side_by_side([jobs[each] for each in second], "runs", log), strict=True)
    contests = []
    for count in asked.labels_per_class:
        hits = {who: np.stack([found[count, draw, who] for draw in range(asked.draws)]) for who in CONTENDERS}
        contests.append(Contest(10 * count, count, hits))
    LOG.info("3/3  Making the page.")
    return write_page(asked, contests, [photos, digits], {ALONE: only_pretrained(asked, contests[0])})


def show_own(asked: Demo, images: str) -> tuple[Path, str]:
    """The same on images of one's own: classified where they have classes, and what the encoder sees in any case."""
    LOG.info("1/3  Pre-training on %s; no label is used.", images)
    encoder = asked.out / "encoder"
    verbs.pretrain("mae", data=images, out=encoder, size="micro", settings=asked.settings(asked.steps or 1500, {}))
    contests = []
    if open_source(images).labels is not None:
        LOG.info("2/3  Learning its classes: fine-tuned, and from scratch.")
        out, settings = asked.out / "classes", asked.settings(asked.finetune_steps or 400, {})
        run = verbs.finetune(images, encoder=encoder, out=out, compare=True, settings=settings)
        if run.scored is not None and run.scratch is not None and run.scratch.scored is not None:
            of = {"pretrained": run.scored, "scratch": run.scratch.scored}
            hits = {who: hits_of(scored.scores["trained"])[None] for who, scored in of.items()}
            contests = [Contest(len(open_source(images).labelled()), None, hits)]
    LOG.info("3/3  Making the page.")
    write_views([Neighbours], encoder)
    return write_page(asked, contests, [encoder], {Neighbours.title: read_run(encoder).views["neighbours"]})


def right_digits(asked: Demo, encoder: Path, count: int, draw: int, who: str) -> Bool[np.ndarray, " n"]:
    """Which test digits are classified rightly, learned from so many digits of each class.

    The same network is trained in the same way, with and without pre-trained weights.
    """
    if who == "pixels":
        return pixel_hits(count, draw)
    run = verbs.finetune(
        "mnist",
        encoder=encoder,
        scratch=who == "scratch",
        out=asked.out / f"labels-{count}" / f"draw-{draw}" / who,
        labels_per_class=count,
        draw=draw,
        settings=asked.settings(asked.finetune_steps or 500, FINETUNING | BESIDE),
    )
    assert run.scored is not None, "digits have labels"
    return hits_of(run.scored.scores["trained"])


def pixel_hits(count: int, draw: int) -> Bool[np.ndarray, " n"]:
    """Logistic regression on raw pixels; its strength is chosen by cross-validation within the labelled digits."""
    parts = open_labelled("mnist").parts
    stats = channel_stats(parts["train"])
    labelled = parts["train"].part(labels_per_class=count, draw=draw)
    train, test = (pixel_table(part, (28, 28), stats) for part in (labelled, parts["test"]))
    model, _ = choose(train.views["pixels"].double().numpy(), train.known_labels.numpy(), seed=draw)
    right: Bool[np.ndarray, " n"] = model.predict(test.views["pixels"].double().numpy()) == test.known_labels.numpy()
    return right


def only_pretrained(asked: Demo, contest: Contest) -> PictureRows:
    """Test digits of the first draw that both others get wrong, and how the network from scratch reads them."""
    test = open_source("mnist", "test")
    ours, scratch, pixels = (contest.hits[who][0] for who in CONTENDERS)
    alone = np.flatnonzero(ours & ~scratch & ~pixels)
    rows = np.random.default_rng(0).permutation(alone)[:SHOWN]
    words = (
        f"In the first draw of the labels the pre-trained network alone is right about {len(alone)} of {len(test):,} "
        f"test digits, and alone wrong about {int((~ours & scratch & pixels).sum())}."
    )
    if not len(rows):
        return PictureRows((), (), "", words)
    folder = asked.out / f"labels-{contest.labels_per_class}" / "draw-0" / "scratch"
    logits, labels, order = TrainedClassifier.open(folder, torch.device("cpu")).labelled(test.subset(rows), SHOWN)
    images, names = read_images(test, (28, 28), rows[order])
    values = images.numpy()
    told = zip(labels.tolist(), logits.argmax(dim=1).tolist(), strict=True)
    row = Row("", "", to_picture(values, values, test.scale), tuple(f"{true}, not {guess}" for true, guess in told))
    caption = "What each is, and what the network from scratch takes it for. A seeded draw, no choice."
    return PictureRows(names, (row,), caption, words, columns=12)


def learning_curve(contests: Sequence[Contest]) -> Chart | None:
    """Errors over the number of labels, where there are several."""
    ordered = sorted(contests, key=lambda contest: contest.labels)
    if len(ordered) < 2:
        return None
    lines = {name: [100 * each.errors(who) for each in ordered] for who, name in CONTENDERS.items()}
    return learning_chart("Errors in 100 test digits", [each.labels_per_class or 0 for each in ordered], lines)


def write_page(
    asked: Demo, contests: Sequence[Contest], encoders: Sequence[Path], looks: Mapping[str, PictureRows]
) -> tuple[Path, str]:
    """OUT/report.html and OUT/demo.json; gives the page, and the sentence on top of it."""
    for encoder in encoders:
        write_rows_of(Reconstruct, encoder)
    runs = [read_run(encoder) for encoder in encoders]
    pictures = {run.path.name: run.pictures for run in runs if run.pictures is not None}
    sentence = contests[0].sentence if contests else finding(next(iter(pictures.values())).about)
    found = [
        {
            "labels": each.labels,
            "errors": {who: each.errors(who) for who in each.hits},
            "ahead_of": {rival: each.ahead_of(rival) for rival in each.rivals},
            "draws": {who: rows.mean(axis=1).tolist() for who, rows in each.hits.items()},
        }
        for each in contests
    ]
    told = {"sentence": sentence, "asked": {**asdict(asked), "out": str(asked.out)}, "results": found}
    replace_file(asked.out / "demo.json", (json.dumps(told, indent=2) + "\n").encode())
    page = fill_template(
        "demo.html",
        title="What pre-training without labels is worth" if contests else "What was learned without labels",
        lead=sentence,
        contests=contests,
        contenders={who: name[0].upper() + name[1:] for who, name in CONTENDERS.items()},
        curve=learning_curve(contests),
        looks=looks,
        pictures=pictures,
        finding=finding,
        encoder=str(encoders[-1]),
        folder=str(asked.out),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    replace_file(asked.out / "report.html", page.encode())
    return asked.out / "report.html", sentence
