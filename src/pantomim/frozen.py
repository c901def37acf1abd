"""The one way a setting is written down: a frozen dataclass that refuses unknown keys."""

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=False)
def frozen(cls: type[T]) -> type[T]:
    """Make a frozen dataclass; read from YAML, it refuses keys that it does not have.

    Checks belong in `__post_init__` and raise `ValueError`; pydantic reports the errors of a whole config together.
    """
    cls.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    return dataclass(frozen=True)(cls)
