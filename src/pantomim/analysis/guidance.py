"""What teacher and student attend to in a run of CMT-MAE, and what is masked: a look at each checkpoint that was kept.

The weights of each are put into the method, and both networks are asked about the same held-out images. `runtime.keep`
says how many checkpoints a run keeps.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from pantomim.analysis.pictures import PictureRows, Row, read_images
from pantomim.analysis.runs import choose, run_config
from pantomim.analysis.views import PictureAnalysis
from pantomim.checkpoint import WEIGHTS, Checkpoint, kept_checkpoints
from pantomim.config import from_dict, of_today
from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen
from pantomim.core.reading import as_kind, read_json
from pantomim.data.dataset import Dataset
from pantomim.data.pictures import to_picture
from pantomim.data.stats import check_scale
from pantomim.formats.files import frozen_hashes, load_exactly, other_parts
from pantomim.methods.cmt_mae import CMTMAE, CMTMAEConfig
from pantomim.methods.guides import draw_mask
from pantomim.targets.pair import Concat
from pantomim.teachers.mixing import evenness

MOST = 6  # checkpoints, evenly spread, the first and the last among them
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
    usual: ClassVar[int] = 8

    def looks(self, dataset: Dataset) -> list[PictureRows]:
        """Of each run the images, then the maps and masks of each checkpoint; maps are white where they are largest."""
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
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn here only to be overwritten
            method = config.method.build(total).eval()
        if different := other_parts(frozen_hashes(method), kept[-1].frozen):
            raise ValueError(f"{run} must be looked at with the teacher of its training; got another {different}.")
        check_scale(method, dataset)
        images, items = read_images(
            dataset, method.encoder.image_size, choose(dataset, self.count or self.usual, self.seed)
        )
        shown = to_picture(images.numpy(), images.numpy(), dataset.scale)
        looks = _look(method, images, shown, kept, total, self.seed)
        caption = (
            f"{self.drawn(dataset, len(items))} At the checkpoints that the run kept. White: where an image's score is "
            f"largest. An entropy of 1 means that all patches score alike."
        )
        lead = "Where teacher and student attend to, and which patches are masked for it, as training proceeds."
        rows = (Row("images", "", shown), *(Row(*look) for look in looks))
        return PictureRows(items, rows, caption, lead, encoder=str(run))


@torch.no_grad()
def _look(
    method: CMTMAE, images: Float[Tensor, "B C H W"], shown: np.ndarray, kept: list[Checkpoint], total: int, seed: int
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Title, text and pictures of each map and mask, checkpoint by checkpoint; a frozen teacher is shown once."""
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
                shares = found / found.amax(dim=1, keepdim=True)
                picture = (_cells(shares, method) * 255).round().astype(np.uint8)
                yield f"{TITLES[name]}, step {step:,}", f"entropy {evenness(found).item():.3f} of the largest", picture
        batch = Batch(images, total=len(images))
        masked = draw_mask(method.masker, batch, method.encoder.grid, generator, maps["mask"]).masked
        text = ""
        if "masked" in earlier:
            text = f"{(earlier['masked'] & masked).sum() / masked.sum():.0%} of it masked at step {earlier_step:,} too"
        yield f"masked, step {step:,}", text, np.where(_cells(masked.float(), method) > 0, np.uint8(128), shown)
        earlier, earlier_step = {**maps, "masked": masked}, step


def who_decides(method: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The teacher's weights in a run of CMT-MAE, and how the student's average moves, from the `method` of its config.

    A ValueError, if it is no config of CMT-MAE.
    """
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


def _cells(values: Float[Tensor, "B N"], method: CMTMAE) -> Float[np.ndarray, "B H W 1"]:
    """A value a patch, as often as the patch has pixels."""
    size, cells = method.encoder.patch_size, values.unflatten(1, method.encoder.grid)
    return cells.repeat_interleave(size, 1).repeat_interleave(size, 2).unsqueeze(-1).numpy()
