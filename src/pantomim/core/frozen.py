"""The one way a setting is written down: a frozen dataclass that refuses unknown keys."""

from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar, dataclass_transform

from pydantic import Discriminator

from pantomim.core.ranges import broken_rule

T = TypeVar("T")

# Annotates a union of parts: the field `kind`, which each of them has, says which one is meant.
KIND = Discriminator("kind")


@dataclass_transform(frozen_default=True, kw_only_default=False)
def frozen(cls: type[T]) -> type[T]:
    """Make a frozen dataclass; read from YAML, it refuses keys that it does not have.

    Fields annotated with a type of `core.ranges` are checked in Python and from YAML alike. Rules across fields belong
    in `__post_init__` and raise `ValueError`; pydantic reports those of a whole config together.
    """
    cls.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    rules_across_fields = getattr(cls, "__post_init__", None)

    def __post_init__(self: Any) -> None:  # noqa: N807  (it becomes the class's)
        for item in fields(self):
            if rule := broken_rule(item.type, value := getattr(self, item.name)):
                raise ValueError(f"{type(self).__name__}.{item.name} must {rule}; got {value}.")
        if rules_across_fields is not None:
            rules_across_fields(self)

    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    return dataclass(frozen=True)(cls)


def in_words(part: Any) -> str:
    """The settings of a part in one line, without its kind and what is left open; presets are written out."""
    words = []
    part = getattr(part, "explicit", part)
    for item in fields(part):
        value = getattr(part, item.name)
        if item.name == "kind" or value is None:
            continue
        if isinstance(value, tuple) and any(map(is_dataclass, value)):
            value = "; ".join(f"{getattr(entry, 'kind', '')} {in_words(entry)}".strip() for entry in value)
        words.append(
            f"{getattr(value, 'kind', '')} {in_words(value)}".strip() if is_dataclass(value) else f"{item.name} {value}"
        )
    return ", ".join(words)
