"""What teacher and student's copy attended to in a run of CMT-MAE, and what was hidden, from its beginning to its end.

The run looks at the same few images from time to time; its last checkpoint has all of that. `write_guidance_arrays`
makes pictures of it for the run's report.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import safe_open
from torch import Tensor

from pantomim.analysis.pictures import display_range, shown_bands, to_picture
from pantomim.analysis.runs import held_out
from pantomim.checkpoint import WEIGHTS, find_checkpoint
from pantomim.config import Pretrain, from_dict, from_yaml
from pantomim.core.files import replace_file
from pantomim.methods.cmt_mae import CMTMAEConfig, evenness
from pantomim.methods.guidance_record import MAPS, overlap

MOST = 6  # looks that are shown, evenly spread
WORDS = {"teacher": "teacher", "student": "student's copy", "mask": "mixed"}


def write_guidance_arrays(run: str | Path) -> Path:
    """Maps and masks of one run in `RUN/analysis/guidance.npz`, for its report.

    The file holds `row_0`, `row_1` ... (n, H, W, 1 or 3), and titles, texts, names and caption as JSON in `about`. Maps
    are white where they are largest in an image.

    Raises:
        ValueError: if the run is of another method, attention decides nothing in it, or it has no checkpoint.
    """
    run = Path(run)
    config = from_yaml(Pretrain, run / "config.yaml")
    if not isinstance(config.method, CMTMAEConfig) or not config.method.masker.guided:
        raise ValueError(
            f"guidance.run must be a run of CMT-MAE in which attention decides what is hidden; got {run}, a run of "
            f"{config.method.kind}."
        )
    checkpoint = find_checkpoint(run / "checkpoints")
    if checkpoint is None:
        raise ValueError(f"guidance.run must have a checkpoint, which remembers it; got none in {run / 'checkpoints'}.")
    with safe_open(checkpoint.path / WEIGHTS, "pt") as weights:
        images, maps, masked, steps = (
            weights.get_tensor(f"record.{name}") for name in ("images", "maps", "masked", "steps")
        )
    dataset, encoder = held_out(config.data.source), config.method.encoder
    bands, values = shown_bands(dataset.channels), images.numpy()
    low, high = display_range(values[:, bands], dataset.scale)
    shown = to_picture(values[:, bands], low, high)

    rows: list[tuple[str, str, np.ndarray]] = [("images", "", shown)]
    before: int | None = None
    for look in spread(steps):
        step, teacher_before = int(steps[look]), None if before is None else maps[before, 0]
        for place, name in enumerate(MAPS):
            scores = maps[look, place]
            still = name == "teacher" and teacher_before is not None and torch.equal(scores, teacher_before)
            if scores.isfinite().all() and not still:
                text = f"entropy {evenness(scores).item():.3f} of the largest"
                rows.append((f"{WORDS[name]}, step {step:,}", text, heat(scores, encoder.grid, encoder.patch_size)))
        text = ""
        if before is not None:
            share = 100 * overlap(masked[before], masked[look]).item()
            text = f"{share:.0f} % of it hidden at step {int(steps[before]):,} too"
        hidden = _pixels(masked[look].unsqueeze(-1).float(), encoder.grid, encoder.patch_size)[..., 0] > 0
        rows.append((f"hidden, step {step:,}", text, np.where(hidden[..., None], np.uint8(128), shown)))
        before = look
    ratio = 100 * masked[0].float().mean().item()
    about = {
        "titles": [title for title, _, _ in rows],
        "texts": [text for _, text, _ in rows],
        "items": [f"image {number}" for number in range(1, len(images) + 1)],
        "caption": (
            f"The first {len(images)} images of {dataset.name} that the run saw, cropped as it saw them. White: where "
            f"an image's score is largest. An entropy of 1 means that all patches score alike. Masks drawn by chance "
            f"would share {ratio:.0f} % of what they hide."
        ),
    }
    buffer = io.BytesIO()
    pictures = {f"row_{number}": picture for number, (_, _, picture) in enumerate(rows)}
    np.savez(buffer, about=np.array(json.dumps(about)), **pictures)  # type: ignore[arg-type]
    path = run / "analysis" / "guidance.npz"
    replace_file(path, buffer.getvalue())
    return path


def who_decides(method: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Whose weight is what in a run of CMT-MAE, from the `method` of its config.

    Raises:
        ValueError: if it is no config of CMT-MAE.
    """
    config = from_dict(CMTMAEConfig, dict(method), "method")
    return [("Teacher's weight", config.weights), *([("Student's copy", config.pace)] * config.needs_copy)]


def spread(steps: Tensor) -> list[int]:
    """At most `MOST` of the looks that were made, the first and the last among these."""
    made = int((steps >= 0).sum())
    return [int(look) for look in np.unique(np.linspace(0, made - 1, min(made, MOST)).round())]


def heat(scores: Float[Tensor, "B N"], grid: tuple[int, int], patch_size: int) -> UInt8[np.ndarray, "B H W _"]:
    """Scores as gray pictures, each image's largest one white."""
    shares = scores / scores.amax(dim=1, keepdim=True)
    return (_pixels(shares.unsqueeze(-1), grid, patch_size) * 255).round().astype(np.uint8)


def _pixels(values: Float[Tensor, "B N _"], grid: tuple[int, int], patch_size: int) -> Float[np.ndarray, "B H W _"]:
    """A value a patch, as often as the patch has pixels."""
    cells = values.unflatten(1, grid).repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)
    return cells.float().numpy()
