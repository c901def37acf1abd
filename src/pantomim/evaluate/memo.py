"""What several evaluations have in common, made once: opened data, features of an encoder, pixels."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Memo:
    """Remembers what was made under a key, for as long as it lives itself.

    Handed to several evaluations, it spares them opening the same data and extracting the same features again. The key
    says everything that the value depends on; features are kept under the hash of the encoder's weights.
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What is remembered under the key, else what `make` gives."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
