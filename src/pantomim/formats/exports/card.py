"""The page of a network that leaves, README.md as hubs show it, and its upload."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pantomim.core.reading import read_json, read_yaml
from pantomim.formats.exports.network import Network, facts
from pantomim.formats.native import ENCODER

CARD = "README.md"
TASKS = {"encoder": "image-feature-extraction", "classifier": "image-classification", "segmenter": "image-segmentation"}
LIBRARIES = {"timm": "timm", "hf": "transformers"}
METRICS = {"top1": "top-1", "miou": "mean IoU"}
CONTENDERS = {"trained": "this network", "untrained": "same encoder, untrained", "pixels": "raw pixels"}


def write_card(folder: Path, network: Network, to: str, check: str, code: str) -> None:
    """README.md: what it is, how to load it, data, recipe, scores and limits."""
    about = facts(network)
    head = [f"library_name: {LIBRARIES[to]}"] if to in LIBRARIES else []
    head += [f"pipeline_tag: {TASKS[network.kind]}", "tags:", "- pantomim", "- masked-image-modelling"]
    name = network.folder.resolve().name if network.folder else network.spec
    lines = ["---", *head, "---", "", f"# {name}", "", f"A vision transformer ({network.kind}) made with pantomim."]
    lines += ["", f"Here as {check}", "", "```python", code, "```", ""]
    lines += ["## Images", "", f"- {about['images']}", f"- mean {about['mean']}, std {about['std']} of these"]
    if to not in LIBRARIES:
        lines += [f"- normalisation {about['normalisation']}"]
    lines += [f"- resizing: {about['resizing']}"]
    if to == "hf" and network.transform.image_size[0] != network.transform.image_size[1]:
        lines += ["- the image processor resizes whole images: cut them to these proportions first"]
    if network.classes:
        lines += ["", "## Classes", "", ", ".join(network.classes)]
    lines += ["", "## Training", "", *_training(network)]
    lines += ["", "## Scores", "", *_scores(network)]
    lines += ["", "## Limits", "", *_limits(network, to)]
    (folder / CARD).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _training(network: Network) -> Iterator[str]:
    if network.folder is None:
        yield f"Weights of {network.spec}; pantomim did not train them."
        return
    yield f"- recipe: {network.about.get('recipe', 'not recorded')}"
    config, done = network.folder / "config.yaml", network.folder / "finished.json"
    told: dict[str, Any] = read_yaml(config) if config.is_file() else {}
    init, seed = told.get("init"), told.get("runtime", {}).get("seed", told.get("seed"))
    facts_told = {
        "method": told.get("method", {}).get("kind"),
        "data": Path(told["data"]["source"]).name if "data" in told else None,  # a path is nobody's business
        "batch size": told.get("batch_size"),
        "steps": read_json(done, dict[str, Any], "Remove it.").get("steps") if done.is_file() else None,
        "seed": seed,
        "initial weights": init if init is None or ":" in str(init) else Path(init).name,
    }
    yield from (f"- {name}: {value}" for name, value in facts_told.items() if value is not None)


def _scores(network: Network) -> Iterator[str]:
    """A row for each file of scores that can be read, another line for those that cannot."""
    rows, damaged = [], []
    for path in sorted((network.folder / "eval").glob("*.json")) if network.folder else ():
        try:
            result = read_json(path, dict[str, Any], "")
            metric = next(name for name in METRICS if name in result["trained"])
            values = {name: result[name][metric] for name in CONTENDERS if metric in result.get(name, {})}
            cells = [f"{100 * values[name]:.1f} %" if name in values else "" for name in CONTENDERS]
            images = f"{result['data']['num_test']:,}"
            rows.append([result["protocol"], result["dataset"], images, METRICS[metric], *cells])
        except (ValueError, KeyError, TypeError, StopIteration):
            damaged.append(path.name)
    if rows:
        for row in (["protocol", "data", "images", "score", *CONTENDERS.values()], ["---"] * 7, *rows):
            yield f"| {' | '.join(row)} |"
    else:
        yield "None: it was not evaluated."
    if damaged:
        yield f"\nNot read: {', '.join(damaged)}."


def _limits(network: Network, to: str) -> Iterator[str]:
    height, width = network.transform.image_size
    yield f"- Images of {height} x {width} pixels alone, unless the library resamples positions."
    yield "- What it is worth on other images than those above is not known: score it on your own first."
    if network.kind == ENCODER:
        yield "- It gives features, no decisions. Which read best, class token or mean of patches, differs by task."
    if to == "hf" and network.kind == ENCODER:
        yield "- `pooler_output` is not trained where transformers warns so: use `last_hidden_state`."
    yield "- The licence is not stated here: it is for you to choose, and may hang on the data and on initial weights."


def upload(folder: Path, name: str) -> None:
    """Upload a folder to a new, private repository on the hub."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api = HfApi()
        api.create_repo(name, private=True)
        api.upload_folder(folder_path=folder, repo_id=name)
    except (HfHubHTTPError, OSError) as error:
        raise ConnectionError(
            f"export.push must name a repository that is new on the hub and may be written to; got {name}: {error}. "
            f"The export is whole in {folder}. Log in with `hf auth login`, or upload it by hand."
        ) from error
