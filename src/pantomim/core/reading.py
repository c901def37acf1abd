"""Files that the package wrote, read back: whatever happened to them, one message says what is wrong and what to do."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

MOST_VALUES = 100_000  # in a YAML file, those of aliases counted as often as they are named

# Of a type, such as that of a run, which takes pydantic a tenth of a second.
adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def read_json(path: Path, kind: Any, advice: str) -> Any:
    """What a JSON file holds, as a `kind`; names that the kind lacks are passed over.

    Raises `FileNotFoundError` where there is no file, else `ValueError` with the reason and the advice.
    """
    try:
        return as_kind(json.loads(path.read_bytes()), kind)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} must hold what was written to it; got {error}. {advice}") from None


def as_kind(values: Any, kind: Any) -> Any:
    """Plain values as a `kind`; `ValueError` with the first that does not fit."""
    try:
        return adapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(f"{where}: {first['msg']}") from None


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, where PyYAML takes the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise ValueError(f"{key.value} is given twice, in line {key.start_mark.line + 1} again")
                seen.add(key.value)
        return node


def read_yaml(path: Path, advice: str = "Give the config.yaml of a run.") -> Any:
    """What a YAML file holds; `ValueError` with the reason and the advice where it cannot be read."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        if _count(values, {}) > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES:,} values, by aliases of aliases")
        return values
    except RecursionError:
        raise ValueError(f"{path} cannot be read as YAML: it is nested too deeply. {advice}") from None
    except Exception as error:  # values with odd tags may raise anything
        raise ValueError(f"{path} cannot be read as YAML: {error}. {advice}") from None


def _count(values: Any, seen: dict[int, int]) -> int:
    if not isinstance(values, dict | list | tuple):
        return 1
    if id(values) not in seen:
        seen[id(values)] = MOST_VALUES + 1
        items = values.values() if isinstance(values, dict) else values
        seen[id(values)] = 1 + sum(_count(item, seen) for item in items)
    return seen[id(values)]
