"""The page of a network that leaves, README.md as hubs show it, and its upload."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pantomim.core.reading import read_json, read_yaml
from pantomim.formats.exports.network import Network, facts

CARD = "README.md"
TASKS = {"encoder": "image-feature-extraction", "classifier": "image-classification", "segmenter": "image-segmentation"}
LIBRARIES = {"timm": "timm", "hf": "transformers"}
METRICS = {"top1": "top-1", "miou": "mean IoU", "rankme": "effective rank"}
CONTENDERS = {"trained": "this network", "untrained": "same encoder, untrained", "pixels": "raw pixels"}
LIMITS = """- It takes images of {height} x {width} pixels; it has seen none of another kind than its training's.
- What it is worth on images other than those scored above is not known: score it on your own first.
- `pooler_output` of transformers is not trained where it warns so: read `last_hidden_state`.
- The licence is not stated: it is for you to choose, and may hang on the images and on the initial weights."""
TEXT = """---
{head}
tags:
- pantomim
- masked-image-modelling
---

# {name}

A vision transformer ({kind}) made with pantomim, here as {check}

```python
{code}
```

## What it takes and gives

{facts}

## Training

{training}

## Scores

{scores}

## Limits

{limits}
"""


def write_card(folder: Path, network: Network, to: str, check: str, code: str) -> None:
    """README.md: what it is, how to load it, data, recipe, scores and limits."""
    told = facts(network)
    if to in LIBRARIES:
        told["normalisation"] = "outside: by the library's own preprocessing, with this mean and std"
    height, width = network.transform.image_size
    library = [f"library_name: {LIBRARIES[to]}"] if to in LIBRARIES else []
    text = TEXT.format(
        head="\n".join([*library, f"pipeline_tag: {TASKS[network.kind]}"]),
        name=network.folder.resolve().name if network.folder else Path(network.spec).name,
        kind=network.kind,
        check=check,
        code=code,
        facts="\n".join(f"- {name}: {value}" for name, value in told.items()),
        training="\n".join(_training(network)),
        scores="\n".join(_scores(network)),
        limits=LIMITS.format(height=height, width=width),
    )
    (folder / CARD).write_text(text, encoding="utf-8")


def _training(network: Network) -> Iterator[str]:
    """What a run states of itself; places on the disk are nobody's business."""
    if network.folder is None:
        yield "Not by pantomim."
        return
    config, end = network.folder / "config.yaml", network.folder / "finished.json"
    told: dict[str, Any] = read_yaml(config) if config.is_file() else {}
    done = read_json(end, dict[str, Any], "Remove it.") if end.is_file() else {}
    found = {
        "recipe": network.about.get("recipe"),
        "method": told.get("method", {}).get("kind"),
        "data": Path(told["data"]["source"]).name if told else None,
        "batch size": told.get("batch_size"),
        "steps": done.get("steps"),
        "initial weights": placeless(told.get("init") or "drawn") if told else None,
    }
    yield from (f"- {name}: {value}" for name, value in found.items() if value is not None)


def placeless(spec: str) -> str:
    """What weights are called, without the folders that they lie in; OWNER/NAME of a hub stays."""
    hub = spec.startswith("hf:") and spec.count("/") == 1 and spec[3] not in "./~" and not Path(spec[3:]).exists()
    return spec if hub else re.sub(r"[^:@]*/", "", spec.rstrip("/"))


def _scores(network: Network) -> Iterator[str]:
    """A row for each file of scores that can be read, another line for those that cannot."""
    rows, damaged = [], []
    for path in sorted((network.folder / "eval").glob("*.json")) if network.folder else ():
        try:
            result = read_json(path, dict[str, Any], "")
            metric = next(name for name in METRICS if name in result["trained"])
            values = [result.get(name, {}).get(metric) for name in CONTENDERS]
            shown = ["" if v is None else f"{v:.1f}" if metric == "rankme" else f"{100 * v:.1f} %" for v in values]
            height, width = result["data"].get("image_size", network.about["encoder"]["image_size"])
            images = f"{result['data']['num_test']:,} of {height} x {width}"
            rows.append([result["protocol"], result["dataset"], images, METRICS[metric], *shown])
        except (ValueError, KeyError, TypeError, StopIteration):
            damaged.append(path.name)
    table = [["protocol", "data", "images", "score", *CONTENDERS.values()], ["---"] * 7, *rows] if rows else []
    yield from (f"| {' | '.join(row)} |" for row in table)
    if not rows and not damaged:
        yield "None: it was not evaluated."
    if damaged:
        yield f"\nNot read: {', '.join(damaged)}."


def check_name(name: str) -> None:
    """Raise a ValueError unless it can be a repository's."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"export.push must be NAME or OWNER/NAME of a repository; got {name}. {error}") from error


def upload(folder: Path, name: str) -> str:
    """Upload a folder to a new, private repository on the hub; gives its whole name, OWNER/NAME."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        whole = (api := HfApi()).create_repo(name, private=True).repo_id
        api.upload_folder(folder_path=folder, repo_id=whole)
    except (HfHubHTTPError, OSError) as error:
        raise ConnectionError(
            f"export.push must name a repository that is new on the hub and may be written to; got {name}: {error}. "
            f"The export is whole in {folder}. Log in with `hf auth login`, or upload it by hand."
        ) from error
    return whole
