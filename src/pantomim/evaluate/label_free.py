"""What features tell where there are no labels: over how many directions they spread, and whether two views agree.

No figure says what an encoder is worth: each is to be read beside that of the same network untrained, and of other
encoders on the same images (docs/results/label_free.md). RankMe grows with the number of images, too.
"""

from contextlib import closing
from typing import Any, ClassVar, Literal

import torch
import tyro

from pantomim.core.frozen import frozen
from pantomim.core.modes import evaluating
from pantomim.core.progress import tracked
from pantomim.core.spread import alignment, effective_rank, relative_std, uniformity
from pantomim.data.dataset import Dataset
from pantomim.data.layout import part_names
from pantomim.data.sources import open_source, splits
from pantomim.data.stream import Stream
from pantomim.data.transforms import Crop, View
from pantomim.evaluate.base import SHOWN, Bench, Contender, Evaluation, Memo, Scores, left_out
from pantomim.evaluate.features import AnyEncoder, at_once, extract, views
from pantomim.evaluate.parts import Labelled
from pantomim.formats.transform import Transform

MOST, LEAST = 1000, 8  # images, unless the user asks for more; and at least


@frozen
class LabelFree(Evaluation):
    """Effective rank (RankMe), std, alignment of two views and uniformity of the features: no labels are needed."""

    protocol: tyro.conf.Suppress[Literal["label_free"]] = "label_free"
    contenders: tuple[Contender, ...] = ("trained", "untrained")  # Raw pixels have no such figures
    chosen_within: ClassVar[str | None] = "nothing is chosen"
    metric: ClassVar[tuple[str, str]] = ("rankme", "effective rank")

    def __post_init__(self) -> None:
        super().__post_init__()
        if "pixels" in self.contenders:
            raise ValueError(f"LabelFree.contenders must be trained or untrained; got {self.contenders}. Drop pixels.")

    def open(self, memo: Memo) -> Labelled:
        """The images of `train`, and those of them or of `test` that are looked at; labels do not count."""
        parts = {part: open_source(self.data, of, self.scale) for part, of in part_names(splits(self.data)).items()}
        chosen = {"train": parts["train"].part(self.images)}
        chosen["test"] = parts["test"].part(self.test_images or min(MOST, len(parts["test"])))
        if len(chosen["test"]) < LEAST:
            raise ValueError(
                f"Evaluation.data must have at least {LEAST} images beside those of pre-training; got "
                f"{len(chosen['test'])} in {self.data}. Give more images, or other ones."
            )
        return Labelled(chosen, torch.empty(0, dtype=torch.int64))

    def run(self, bench: Bench) -> dict[str, Scores]:
        """Of the mean of patches, which every encoder has; and of the class token, as `class`."""
        return {name: self.figures(encoder, bench.test) for name, encoder in bench.encoders.items()}

    @torch.no_grad()
    def figures(self, encoder: AnyEncoder, images: Dataset) -> Scores:
        """Rank, std and uniformity of whole images; alignment of two random crops of each, those of pre-training."""
        table = extract(encoder, images, batch_size=self.chunk)
        device, count = next(encoder.parameters()).device, -(-len(images) // at_once(encoder, self.chunk))
        crop = Crop(interpolation=Transform.of(encoder).interpolation)
        how: Any = {"image_size": encoder.image_size, "seed": self.seed, "crop": crop, "second": View(crop)}
        stream = Stream(images, batch_size=len(images) // count, device=device, **how)
        pairs: dict[str, list[list[torch.Tensor]]] = {name: [] for name in table.views}
        with evaluating(encoder), closing(stream.batches(0, count)) as batches:
            for (batch,) in tracked(batches, "two crops of each image", count):
                assert batch.second is not None
                both = [views(encoder, encoder(view)) for view in (batch.images, batch.second)]
                for name, found in pairs.items():
                    found.append([view[name].cpu() for view in both])
        figures = {}
        for name, values in table.views.items():
            apart = alignment(*(torch.cat(of_view) for of_view in zip(*pairs[name], strict=True)))
            figures[name] = {"rankme": effective_rank(values), "std": relative_std(values), "alignment": apart}
            figures[name]["uniformity"] = uniformity(values)
        return {**figures.pop("mean"), **figures}

    def headline(self, result: dict[str, Any]) -> str:
        """The result in a line for each encoder."""
        lines = []
        for name in [name for name in SHOWN if name in result]:
            for view in ("mean of patches", "class token"):
                found = result[name] if view.startswith("mean") else result[name].get("class", {})
                numbers = ", ".join(f"{figure} {found[figure]:.3g}" for figure in found if figure != "class")
                lines += [f"  {SHOWN[name]}, {view}: {numbers}"] if found else []
        count = result["data"]["num_test"]
        return "\n".join([f"label-free on {result['dataset']}, {count} images:", *lines]) + left_out(result)
