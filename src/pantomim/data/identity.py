"""Which images there are, to know them again: name, size and class of each."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np

from pantomim.data.stores import Store


@dataclass(frozen=True)
class Identity:
    """Name, size (`Store.sizes`) and class of each image, in their order; masks follow the images."""

    names: list[str]
    sizes: list[int]
    labels: list[str]

    @staticmethod
    def of(store: Store, positions: np.ndarray, classes: Sequence[str] | None, labels: np.ndarray | None) -> "Identity":
        """That of images of a store, with a class id for each, -1 where it has none."""
        ids = [-1] * len(positions) if labels is None else labels.tolist()
        texts = ["" if k < 0 else str(k if classes is None else classes[k]) for k in ids]
        places = positions.tolist()
        return Identity([store.names[place] for place in places], store.sizes(places), texts)

    @staticmethod
    def joined(parts: "Sequence[Identity]") -> "Identity":
        """One after the other."""
        columns = ([value for part in parts for value in getattr(part, name)] for name in ("names", "sizes", "labels"))
        return Identity(*columns)

    @cached_property
    def text(self) -> bytes:
        """As JSON."""
        return json.dumps({"names": self.names, "sizes": self.sizes, "labels": self.labels}).encode()

    @cached_property
    def sha256(self) -> str:
        """Of names, sizes and labels."""
        return sha256(self.text).hexdigest()

    @property
    def key(self) -> dict[str, Any]:
        """Count and hash."""
        return {"images": len(self.names), "identity": self.sha256}

    def changes(self, before: "Identity") -> dict[str, list[str]]:
        """The names of images that differ from what was written down before, by what became of them."""
        rows = ((one.names, zip(one.sizes, one.labels, strict=True)) for one in (self, before))
        now, then = (dict(zip(names, rest, strict=True)) for names, rest in rows)
        both = [name for name in then if name in now]
        kinds = {
            "gone": [name for name in then if name not in now],
            "new": [name for name in now if name not in then],
            "changed": [name for name in both if then[name][0] != now[name][0]],
            "of another class": [name for name in both if then[name][1] != now[name][1]],
        }
        return {kind: names for kind, names in kinds.items() if names}
