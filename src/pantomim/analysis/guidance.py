"""What teacher and student attend to in a run of CMT-MAE, and what is masked: a look at each checkpoint that was kept.

The weights of each are put into the method, and both networks are asked about the same held-out images. `runtime.keep`
says how many checkpoints a run keeps.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors.torch import load_file
from torch import Tensor

from pantomim.analysis.attention_maps import laid_over
from pantomim.analysis.pictures import PictureRows, Row, cells, read_images
from pantomim.analysis.runs import choose, run_config
from pantomim.analysis.views import PictureAnalysis
from pantomim.checkpoint import WEIGHTS, Checkpoint, kept_checkpoints
from pantomim.config import from_dict, of_today
from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen
from pantomim.core.modes import initial_weights_unused
from pantomim.core.reading import as_kind, read_json
from pantomim.data.dataset import Dataset
from pantomim.data.pictures import to_picture
from pantomim.data.stats import check_scale
from pantomim.formats.files import frozen_hashes, load_exactly, other_parts
from pantomim.methods.cmt_mae import CMTMAE, CMTMAEConfig
from pantomim.methods.guides import draw_mask
from pantomim.targets.pair import Concat
from pantomim.teachers.mixing import evenness

MOST = 3  # checkpoints, evenly spread, the first and the last among them
EVEN = 0.99  # entropy of a map, of the largest, from which on all patches score nearly alike. Ours
ALIKE = 0.5  # how far two masks agree beyond chance, 1 being wholly, from which on they have little variety. Ours
PLACES = {  # of a network in a checkpoint: in those of earlier versions, and now
    "teacher": ("teacher.teacher.", "teacher."),
    "student": ("student.teacher.", "ema_student."),
}
TITLES = {"teacher": "teacher", "student": "student's moving average", "mask": "mixed"}


@frozen
class Guidance(PictureAnalysis):
    """What guided the masks in a run of CMT-MAE, at each checkpoint that it kept."""

    name: ClassVar[str] = "guidance"
    title: ClassVar[str] = "What guided the masks"
    usual: ClassVar[int] = 6

    def looks(self, dataset: Dataset) -> list[PictureRows]:
        """Of each run the images, then the maps, laid over them, and masks of each checkpoint."""
        return [self._look_at(Path(run), dataset) for run in self.encoders]

    def _look_at(self, run: Path, dataset: Dataset) -> PictureRows:
        config = run_config(run)
        if not isinstance(config.method, CMTMAEConfig) or not config.method.masker.guided:
            raise ValueError(
                f"guidance.run must be a run of CMT-MAE in which attention decides what is masked; got {run}, a run of "
                f"{config.method.kind}."
            )
        kept = kept_checkpoints(run / "checkpoints")
        if not kept or not (run / "finished.json").is_file():
            raise ValueError(
                f"guidance.run must be finished and have a checkpoint; got {run}. Train it to its end first."
            )
        advice = "Run the command of its training again, which mends it."
        total = as_kind(read_json(run / "finished.json", dict[str, Any], advice).get("steps"), int)
        with initial_weights_unused():
            method = config.method.build(total).eval()
        if different := other_parts(frozen_hashes(method), kept[-1].frozen):
            raise ValueError(f"{run} must be looked at with the teacher of its training; got another {different}.")
        check_scale(method, dataset)
        chosen = choose(dataset, self.count or self.usual, self.seed)
        images, items = read_images(dataset, method.encoder.image_size, chosen, config.data.crop.interpolation)
        shown = to_picture(images.numpy(), images.numpy(), dataset.scale)
        rows, facts = zip(*_look(method, images, shown, kept, total, self.seed), strict=True)
        caption = (
            f"{self.drawn(dataset, len(items))} At checkpoints that the run kept. Bright: where a patch's score is "
            f"near the largest of its image. An entropy of 1 means that all patches score alike."
        )
        lead, warning = finding(facts[-2].item(), *likeness(facts[-1]))
        warnings = (warning,) if warning else ()
        return PictureRows(items, (Row("images", "", shown), *rows), caption, lead, warnings, encoder=str(run))


def likeness(draws: Bool[Tensor, "2 n N"]) -> tuple[float, float, float]:
    """Of the patches masked in an image the share also masked in another, in another draw of it, and by chance."""
    masks, again = draws.double()
    both = masks @ masks.T
    among = (both.sum() - both.diagonal().sum()) / max(len(masks) - 1, 1)
    total = masks.sum()
    return (among / total).item(), ((masks * again).sum() / total).item(), masks.mean().item()


def finding(entropy: float, among: float, again: float, chance: float) -> tuple[str, str]:
    """What guides the masks at the end of a run, and what is wrong with it, in a sentence each; "" for nothing."""
    lead = (
        f"In the end the mixed map of an image has {100 * entropy:.1f} % of the largest entropy; two images share "
        f"{100 * among:.0f} % of their masked patches, two draws of an image {100 * again:.0f} % ({100 * chance:.0f} % "
        f"by chance)."
    )
    far = chance + ALIKE * (1.0 - chance)
    if among >= far:
        return lead, "The masks of different images are nearly the same: their variety has collapsed."
    if again >= far:
        return lead, "An image is masked nearly alike each time it is drawn: its masks have little variety."
    if entropy >= EVEN:
        return lead, "All patches score nearly alike: small differences decide what is masked."
    return lead, ""


@torch.no_grad()
def _look(
    method: CMTMAE, images: Float[Tensor, "B C H W"], shown: np.ndarray, kept: list[Checkpoint], total: int, seed: int
) -> Iterator[tuple[Row, Tensor]]:
    """By checkpoint, maps with their entropies, the mixed one last, then the masks; a frozen teacher once."""
    earlier: dict[str, Tensor] = {}
    earlier_step = 0
    for index in np.unique(np.linspace(0, len(kept) - 1, min(len(kept), MOST)).round().astype(int)):
        _load_guides(method, kept[index])
        step, generator = kept[index].step, torch.Generator().manual_seed(seed)
        scores, networks = method.config.scores, method.networks()
        attention = {name: networks[name](images, scores.query(name)).attention for name in method.config.attended}
        maps = scores.maps(attention, method.config.mixing.at(step - 1, total))
        for name, found in maps.items():
            if name != "teacher" or not torch.equal(found, earlier.get(name, found.new_empty(0))):
                entropy, parts = evenness(found), found.unflatten(1, (1, *method.encoder.grid)).numpy()
                pictures = np.concatenate([laid_over(photo, part) for photo, part in zip(shown, parts, strict=True)])
                yield Row(f"{TITLES[name]}, step {step:,}", f"entropy {entropy:.3f} of the largest", pictures), entropy
        batch = Batch(images, total=len(images))
        draws = [draw_mask(method.masker, batch, method.encoder.grid, generator, maps["mask"]).masked for _ in range(2)]
        masked = draws[0]
        text = ""
        if "masked" in earlier:
            text = f"{(earlier['masked'] & masked).sum() / masked.sum():.0%} of it masked at step {earlier_step:,} too"
        hidden = cells(masked.unflatten(1, method.encoder.grid).numpy(), shown.shape[1:3])[..., None]
        pictures = np.where(hidden, np.uint8(128), shown)
        yield Row(f"masked, step {step:,}", text, pictures), torch.stack(draws)
        earlier, earlier_step = {**maps, "masked": masked}, step


def who_decides(method: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The teacher's weights in CMT-MAE, and how the student's average moves, by a config's `method`; or an error."""
    config = from_dict(CMTMAEConfig, of_today({"method": method}, "config.yaml")["method"], "method")
    rows = [("Teacher's weight in the mask", config.mixing.in_words())] * config.masker.guided
    if config.predicted and not isinstance(config.target, Concat):
        rows.append(("Teacher's weight in the target", config.mixing.in_words(config.target.teacher_weight)))
    if "student" in config.attended + config.predicted:
        half_life = f"half is forgotten in {100 * (config.half_life or 0):g} % of the steps"
        rows.append(("Student's moving average", str(config.momentum) if config.half_life is None else half_life))
    return rows


def _load_guides(method: CMTMAE, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights into the guiding networks; those that never change lie in none."""
    weights = load_file(checkpoint.path / WEIGHTS)
    for name, network in method.networks().items():
        for place in PLACES[name]:
            if found := {key.removeprefix(place): value for key, value in weights.items() if key.startswith(place)}:
                load_exactly(network, found, str(checkpoint.path))
                break
