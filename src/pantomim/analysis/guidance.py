"""What teacher and student attend to in a run of CMT-MAE, and what is masked: a look at each checkpoint that was kept.

`write_guidance_arrays` puts the weights of each into the method, asks both networks about the same held-out images, and
leaves pictures for the run's report. `runtime.keep` says how many checkpoints a run keeps.
"""

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from pantomim.analysis.reconstructions import choose, display_range, held_out, shown_bands, to_picture
from pantomim.checkpoint import WEIGHTS, Checkpoint, kept_checkpoints
from pantomim.config import Pretrain, from_dict, from_yaml, of_today
from pantomim.core.batch import Batch
from pantomim.core.files import replace_file
from pantomim.data.stream import evaluation_batches
from pantomim.formats.files import frozen_hashes, load_exactly, other_parts
from pantomim.methods.cmt_mae import CMTMAE, CMTMAEConfig
from pantomim.methods.guides import ask, draw_mask
from pantomim.targets.pair import Concat
from pantomim.teachers.mixing import evenness

COUNT, MOST = 8, 6  # images; checkpoints, evenly spread, the first and the last among them
PLACES = {  # of a network in a checkpoint: in those of earlier versions, and now
    "teacher": ("teacher.teacher.", "teacher."),
    "student": ("student.teacher.", "ema_student."),
}
TITLES = {"teacher": "teacher", "student": "student's average", "mask": "mixed"}


def write_guidance_arrays(run: str | Path, *, seed: int = 0) -> Path:
    """Maps and masks of a finished run in `RUN/analysis/guidance.npz`, for its report.

    The file holds `row_0`, `row_1` ... (n, H, W, 1 or 3), and titles, texts, names and caption as JSON in `about`. Maps
    are white where they are largest in an image.

    Args:
        run: Its folder.
        seed: Of the choice of images, and of masks that are drawn.

    Raises:
        ValueError: if the run is of another method, is not finished, attention decides nothing in it, or its teacher is
            another one now.
    """
    run = Path(run)
    config = from_yaml(Pretrain, run / "config.yaml")
    if not isinstance(config.method, CMTMAEConfig) or not config.method.masker.guided:
        raise ValueError(
            f"guidance.run must be a run of CMT-MAE in which attention decides what is masked; got {run}, a run of "
            f"{config.method.kind}."
        )
    kept = kept_checkpoints(run / "checkpoints")
    if not kept or not (run / "finished.json").is_file():
        raise ValueError(f"guidance.run must be finished and have a checkpoint; got {run}. Train it to its end first.")
    total = json.loads((run / "finished.json").read_text(encoding="utf-8"))["steps"]
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn here only to be overwritten
        method = config.method.build(total).eval()
    if different := other_parts(frozen_hashes(method), kept[-1].frozen):
        raise ValueError(f"{run} must be looked at with the teacher of its training; got another {different}.")
    dataset = held_out(config.data.source)
    batches = evaluation_batches(
        dataset, method.encoder.image_size, COUNT, torch.device("cpu"), indices=choose(dataset, COUNT, seed)
    )
    images, ids = next(batches)
    values = images.numpy()[:, list(shown_bands(dataset.channels))]
    shown = to_picture(values, *display_range(values, dataset.scale))
    rows = [("images", "", shown), *_look(method, images, shown, kept, total, seed)]
    about = {
        "titles": [title for title, _, _ in rows],
        "texts": [text for _, text, _ in rows],
        "items": [dataset.names[int(index)] for index in ids],
        "caption": (
            f"{len(ids)} images of {dataset.name} ({dataset.split}), drawn with seed {seed}, at the checkpoints that "
            f"the run kept. White: where an image's score is largest. An entropy of 1 means that all patches score "
            f"alike."
        ),
    }
    buffer = io.BytesIO()
    pictures = {f"row_{number}": picture for number, (_, _, picture) in enumerate(rows)}
    np.savez(buffer, about=np.array(json.dumps(about)), **pictures)  # type: ignore[arg-type]
    path = run / "analysis" / "guidance.npz"
    replace_file(path, buffer.getvalue())
    return path


@torch.no_grad()
def _look(
    method: CMTMAE,
    images: Float[Tensor, "B C H W"],
    shown: np.ndarray,
    kept: list[Checkpoint],
    total: int,
    seed: int,
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Title, text and pictures of each map and mask, checkpoint by checkpoint; a frozen teacher is shown once."""
    earlier: dict[str, Tensor] = {}
    earlier_step = 0
    for index in np.unique(np.linspace(0, len(kept) - 1, min(len(kept), MOST)).round().astype(int)):
        _load_guides(method, kept[index])
        step, generator = kept[index].step, torch.Generator().manual_seed(seed)
        attention = {name: ask(guide, images, method.query(name)).attention for name, guide in method.networks()}
        maps = method.maps(attention, method.config.mixing.at(step - 1, total))
        for name, scores in maps.items():
            if name != "teacher" or not torch.equal(scores, earlier.get(name, scores.new_empty(0))):
                shares = scores / scores.amax(dim=1, keepdim=True)
                picture = (_cells(shares, method) * 255).round().astype(np.uint8)
                yield f"{TITLES[name]}, step {step:,}", f"entropy {evenness(scores).item():.3f} of the largest", picture
        batch = Batch(images, total=len(images))
        masked = draw_mask(method.masker, batch, method.encoder.grid, generator, maps["mask"]).masked
        text = ""
        if "masked" in earlier:
            text = f"{(earlier['masked'] & masked).sum() / masked.sum():.0%} of it masked at step {earlier_step:,} too"
        yield f"masked, step {step:,}", text, np.where(_cells(masked.float(), method) > 0, np.uint8(128), shown)
        earlier, earlier_step = {**maps, "masked": masked}, step


def who_decides(method: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The teacher's weights in a run of CMT-MAE, and how the student's average moves, from the `method` of its config.

    Raises:
        ValueError: if it is no config of CMT-MAE.
    """
    config = from_dict(CMTMAEConfig, of_today({"method": method}, "config.yaml")["method"], "method")
    mixing, has_average = config.mixing, "student" in config.attended + config.predicted
    words = [f"{mixing.teacher_weight:g} in the mask"] * config.masker.guided
    if config.feature_weight and not isinstance(config.target, Concat):
        own = config.target.teacher_weight
        words.append(f"{mixing.teacher_weight if own is None else own:g} in the target")
    if mixing.start is not None:
        words.append(f"{mixing.schedule} from {mixing.start:g}")
    words += [f"1 in the first {100 * mixing.warmup_share:g} % of the steps"] * (
        mixing.warmup_share > 0 and has_average
    )
    rows = [("Teacher's weight", ", ".join(words))]
    if has_average and config.half_life is not None:
        rows.append(("Student's average", f"half is forgotten in {100 * config.half_life:g} % of the steps"))
    elif has_average:
        rows.append(("Student's average", str(config.momentum)))
    return rows


def _load_guides(method: CMTMAE, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights into the guiding networks; those that never change lie in none."""
    weights = load_file(checkpoint.path / WEIGHTS)
    for name, guide in method.networks():
        for place in PLACES[name]:
            if found := {key.removeprefix(place): value for key, value in weights.items() if key.startswith(place)}:
                load_exactly(guide, found, str(checkpoint.path))
                break


def _cells(values: Float[Tensor, "B N"], method: CMTMAE) -> Float[np.ndarray, "B H W 1"]:
    """A value a patch, as often as the patch has pixels."""
    size, cells = method.encoder.patch_size, values.unflatten(1, method.encoder.grid)
    return cells.repeat_interleave(size, 1).repeat_interleave(size, 2).unsqueeze(-1).numpy()
