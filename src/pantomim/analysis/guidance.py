"""What teacher and student's copy attend to in a run of CMT-MAE, and what was hidden, from checkpoint to checkpoint.

`write_guidance_arrays("RUN")` does it with held-out images of the run's own data, for the run's report. A run keeps
its last checkpoints; with `--runtime.keep 20` it keeps enough to see how the maps change.
"""

import io
import json
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pantomim.analysis.reconstructions import choose, display_range, held_out, shown_bands, to_picture
from pantomim.checkpoint import Checkpoint, load_weights, whole_checkpoints
from pantomim.config import Pretrain, from_yaml
from pantomim.data.stream import evaluation_batches
from pantomim.files import replace_file
from pantomim.methods.base import Batch
from pantomim.methods.cmt_mae import CMTMAE, CMTMAEConfig, draw_mask, evenness

MOST = 6  # checkpoints that are shown, evenly spread


@torch.no_grad()
def write_guidance_arrays(run: str | Path, *, count: int = 8, seed: int = 0) -> Path:
    """Maps and masks of one run in `RUN/analysis/guidance.npz`, for its report.

    The file holds `row_0`, `row_1` ... (n, H, W, 1 or 3), and titles, texts, names and caption as JSON in `about`. Maps
    are white where they are largest in an image.

    Args:
        run: A finished run of CMT-MAE.
        count: How many images.
        seed: Of the choice of images and of masks that are drawn.

    Raises:
        ValueError: if the run is of another method, attention decides nothing in it, it has no whole checkpoint, or its
            teacher is not to be had again.
    """
    run = Path(run)
    config = from_yaml(Pretrain, run / "config.yaml")
    if not isinstance(config.method, CMTMAEConfig) or not config.method.masker.guided:
        raise ValueError(
            f"guidance.run must be a run of CMT-MAE in which attention decides what is hidden; got {run}, a run of "
            f"{config.method.kind}."
        )
    checkpoints = whole_checkpoints(run / "checkpoints")
    if not checkpoints:
        raise ValueError(f"guidance.run must have a whole checkpoint; got none in {run / 'checkpoints'}.")
    with torch.random.fork_rng(devices=[]):
        method = config.method.build().eval()
    total = json.loads((run / "finished.json").read_text(encoding="utf-8"))["steps"]
    method.begin(total)
    dataset = held_out(config.data.source)
    indices = choose(dataset, count, seed)
    encoder = method.encoder
    found = list(evaluation_batches(dataset, encoder.image_size, len(indices), torch.device("cpu"), indices=indices))
    images = torch.cat([part for part, _ in found])
    bands = shown_bands(dataset.channels)
    values = images.numpy()
    low, high = display_range(values[:, bands], dataset.scale)

    rows: list[tuple[str, str, np.ndarray]] = [("images", "", to_picture(values[:, bands], low, high))]
    before: tuple[int, Tensor] | None = None
    for checkpoint in spread(checkpoints):
        load_weights(checkpoint, method)
        maps = maps_at(method, images, min(checkpoint.step, total - 1))
        generator = torch.Generator().manual_seed(seed)
        masked = draw_mask(
            method.masker, Batch(images, total=len(images)), encoder.grid, generator, maps["mask"]
        ).masked
        for name, title in (("teacher", "teacher"), ("student", "student's copy"), ("mask", "mixed")):
            if name in maps and (name != "teacher" or before is None):  # which stands still
                words = f"{title}, step {checkpoint.step:,}" if name != "teacher" else title
                text = f"entropy {evenness(maps[name]).item():.3f} of the largest"
                rows.append((words, text, heat(maps[name], encoder.grid, encoder.patch_size)))
        text = "" if before is None else f"{overlap(before[1], masked):.0f} % of it hidden at step {before[0]:,} too"
        hidden = _pixels(masked.unsqueeze(-1).float(), encoder.grid, encoder.patch_size)[..., 0] > 0
        shown = np.where(hidden[..., None], np.uint8(128), rows[0][2])
        rows.append((f"hidden, step {checkpoint.step:,}", text, shown))
        before = checkpoint.step, masked
    about = {
        "titles": [title for title, _, _ in rows],
        "texts": [text for _, text, _ in rows],
        "items": [dataset.names[int(index)] for _, ids in found for index in ids],
        "caption": (
            f"{len(images)} images of {dataset.name}, drawn with seed {seed}, whole. White: where an image's score is "
            f"largest. An entropy of 1 means that all patches score alike. The checkpoints are those that the run kept."
        ),
    }
    buffer = io.BytesIO()
    pictures = {f"row_{number}": shown for number, (_, _, shown) in enumerate(rows)}
    np.savez(buffer, about=np.array(json.dumps(about)), **pictures)  # type: ignore[arg-type]
    path = run / "analysis" / "guidance.npz"
    replace_file(path, buffer.getvalue())
    return path


def maps_at(method: CMTMAE, images: Float[Tensor, "B C H W"], step: int) -> dict[str, Float[Tensor, "B N"]]:
    """The scores of both networks, where there are two, and mixed as at a step of the run."""
    weight, _ = method.mixing.at(step, method.total)
    teacher, student = (
        None if guide is None or query not in guide.queries else method.ask(guide, images, query)
        for guide, query in (
            (method.teacher, method.scores.teacher_query),
            (method.student, method.scores.student_query),
        )
    )
    return method.maps(teacher, student, weight)


def overlap(before: Tensor, now: Tensor) -> float:
    """Per cent of what is hidden now that was hidden before."""
    return 100 * (before & now).sum().item() / now.sum().item()


def spread(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """At most `MOST` of them, the first and the last among these."""
    chosen = np.unique(np.linspace(0, len(checkpoints) - 1, min(len(checkpoints), MOST)).round().astype(int))
    return [checkpoints[index] for index in chosen]


def heat(scores: Float[Tensor, "B N"], grid: tuple[int, int], patch_size: int) -> UInt8[np.ndarray, "B H W _"]:
    """Scores as gray pictures, each image's largest one white."""
    shares = scores / scores.amax(dim=1, keepdim=True)
    return (_pixels(shares.unsqueeze(-1), grid, patch_size) * 255).round().astype(np.uint8)


def _pixels(values: Float[Tensor, "B N _"], grid: tuple[int, int], patch_size: int) -> Float[np.ndarray, "B H W _"]:
    """A value a patch, as often as the patch has pixels."""
    cells = values.unflatten(1, grid).repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)
    return cells.float().numpy()
