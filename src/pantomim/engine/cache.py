"""What frozen teachers and tokenizers say of every image, computed once and kept on disk.

Where an image looks the same every time (a crop of kind none, no augmentation, at most mirrored), a part that never
changes says the same of it in every epoch. `remember` asks each such part about all images, once as they are and once
mirrored, and from then on lets it answer from a file: `Memory.look_up` before each forward pass, for the rows at hand.
The method does not know. Files lie in the cache folder, under a hash of part, images, transform and precision.
"""

import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from filelock import FileLock
from torch import Tensor, nn

from pantomim.config import Pretrain
from pantomim.data.dataset import Dataset
from pantomim.data.identity import data_key
from pantomim.data.stream import evaluation_batches
from pantomim.engine.runtime import autocast, on_main
from pantomim.files import cache_folder, replace_file
from pantomim.formats.files import frozen_hashes, frozen_parts
from pantomim.methods.base import Batch

VERSION = 1  # of the way values are computed and laid out
VALUES, CHECKSUMS, ABOUT = "values.bin", "checksums.npy", "cache.json"
FREE_SHARE = 0.95  # of the disk's free space that a file may take


@dataclass(frozen=True)
class Layout:
    """How the answer on one image lies in its row: tensors one behind the other.

    Args:
        kind: Class of the answer: a tensor, or a tuple with names.
        shapes: Of each tensor, without the batch; None where the answer has none.
        dtypes: Of each.
    """

    kind: Callable[..., Any] | None
    shapes: tuple[tuple[int, ...] | None, ...]
    dtypes: tuple[torch.dtype | None, ...]

    @classmethod
    def of(cls, answer: Any) -> "Layout":
        """The layout of an answer on a batch."""
        named = not isinstance(answer, Tensor)
        tensors = tuple(answer) if named else (answer,)
        return cls(
            type(answer) if named else None,
            tuple(None if tensor is None else tuple(tensor.shape[1:]) for tensor in tensors),
            tuple(None if tensor is None else tensor.dtype for tensor in tensors),
        )

    @property
    def sizes(self) -> list[int]:
        """Bytes of each tensor."""
        return [
            0 if shape is None or dtype is None else int(np.prod(shape)) * dtype.itemsize
            for shape, dtype in zip(self.shapes, self.dtypes, strict=True)
        ]

    def to_rows(self, answer: Any) -> np.ndarray:
        """An answer on a batch as bytes, a row an image."""
        tensors = [answer] if self.kind is None else [tensor for tensor in answer if tensor is not None]
        parts = [tensor.detach().cpu().contiguous().flatten(1).view(torch.uint8).numpy() for tensor in tensors]
        return np.concatenate([part for part in parts if part.shape[1]], axis=1)

    def from_rows(self, rows: np.ndarray, device: torch.device) -> Any:
        """The answer that `to_rows` was given."""
        found: list[Tensor | None] = []
        first = 0
        for shape, dtype, size in zip(self.shapes, self.dtypes, self.sizes, strict=True):
            if shape is None or dtype is None:
                found.append(None)
                continue
            part = torch.from_numpy(np.ascontiguousarray(rows[:, first : first + size]))
            empty = torch.empty(len(rows), *shape, dtype=dtype)
            found.append((part.view(dtype).view(len(rows), *shape) if size else empty).to(device))
            first += size
        return found[0] if self.kind is None else self.kind(*found)

    def describe(self) -> dict[str, Any]:
        """As plain values."""
        kind = "Tensor" if self.kind is None else self.kind.__name__  # type: ignore[attr-defined]
        shapes = [None if shape is None else list(shape) for shape in self.shapes]
        return {"kind": kind, "shapes": shapes, "dtypes": [str(dtype) for dtype in self.dtypes]}


class Memory:
    """The answers of one part on all images of a run, in a file.

    Args:
        name: Of the part, within the method.
        folder: Where its files lie.
        layout: Of an answer.
        mirrored: There is a second row for each image, mirrored.
        computed: So many answers were computed for it now; 0: all were found.
    """

    def __init__(self, name: str, folder: Path, layout: Layout, mirrored: bool, computed: int) -> None:
        self.name, self.folder, self.layout, self.computed, self.served = name, folder, layout, computed, 0
        self._views = 1 + int(mirrored)
        self._checksums = np.load(folder / CHECKSUMS)
        self._rows = np.memmap(folder / VALUES, np.uint8, "r").reshape(len(self._checksums), sum(layout.sizes))
        self._checked = np.zeros(len(self._checksums), dtype=bool)
        self.known: Any = None

    def look_up(self, ids: np.ndarray, flips: np.ndarray, device: torch.device) -> None:
        """Have the answers on these images at hand; each row is checked when it is first read.

        Raises:
            ValueError: if a row is not as it was written.
        """
        places = ids * self._views + (flips if self._views == 2 else 0)
        rows = self._rows[places]
        for place, row in zip(places, rows, strict=True):
            if not self._checked[place] and zlib.crc32(row) != self._checksums[place]:
                raise ValueError(
                    f"{self.folder / VALUES} must be as it was written; got another checksum in row {place}. "
                    f"Remove {self.folder}: it is made anew."
                )
            self._checked[place] = True
        self.known = self.layout.from_rows(rows, device)
        self.served += len(ids)

    def answer(self, images: Tensor, query: str | None = None) -> Any:
        """In the place of the part's own forward: what it says of the images that were looked up.

        Raises:
            ValueError: if attention is asked for, which is not kept.
        """
        if query is not None:
            raise ValueError(
                f"RuntimeConfig.cache must be off where a teacher's attention guides the masks; got {self.name} asked "
                f"for it. Leave --runtime.cache out."
            )
        return self.known

    def describe(self) -> dict[str, Any]:
        """What it has saved; for the run folder."""
        return {
            "folder": str(self.folder),
            "bytes": self._rows.nbytes,
            "images_computed": self.computed,
            "images_served": self.served,
            "passes_saved": self.served - self.computed,
        }


@dataclass(frozen=True)
class Memories:
    """Those of all parts of a method; none, where the config asks for no cache."""

    parts: tuple[Memory, ...] = ()

    def look_up(self, batch: Batch, flips: np.ndarray) -> None:
        """Have all answers on a batch at hand."""
        if self.parts and batch.ids is not None:
            ids = batch.ids.cpu().numpy()
            for memory in self.parts:
                memory.look_up(ids, flips, batch.images.device)

    def write(self, path: Path, steps: int) -> None:
        """What they have saved, as JSON.

        Args:
            path: The file.
            steps: That were served since the run was started or gone on with.
        """
        if self.parts:
            values = {"steps_served": steps, "parts": {memory.name: memory.describe() for memory in self.parts}}
            replace_file(path, (json.dumps(values, indent=2) + "\n").encode())

    def __str__(self) -> str:
        """In a sentence for each."""
        return " ".join(
            f"{memory.name}: {'computed now' if memory.computed else 'found'}, "
            f"{memory.describe()['bytes'] / 2**20:,.1f} MiB in {memory.folder}."
            for memory in self.parts
        )


def check_cache(config: Pretrain, method: nn.Module) -> None:
    """Refuse a cache that could not serve.

    Raises:
        ValueError: if images look different every time, or nothing in the method stays as it is.
    """
    if not config.runtime.cache:
        return
    data, reason = config.data, ""
    if data.crop.kind != "none":
        reason = f"crops are drawn anew every time (data.crop.kind {data.crop.kind}). Give --data.crop.kind none"
    elif data.augment.active or data.second is not None:
        reason = "images are augmented anew every time (data.augment, data.second). Leave that out"
    elif getattr(getattr(config.method, "masker", None), "guided", False):
        reason = "attention, which guides the masks, is not kept (method.masker.kind attention). Take another masker"
    elif not frozen_parts(method):
        reason = (
            f"{config.method.kind} has no teacher or tokenizer that stays as it is. Choose a target that has one, such "
            f"as tokens"
        )
    if reason:
        raise ValueError(f"RuntimeConfig.cache must be off where it cannot serve; {reason}, or --runtime.cache False.")


def remember(
    config: Pretrain,
    method: nn.Module,
    dataset: Dataset,
    accelerator: Accelerator,
    *,
    rows: int,
    dtype: torch.dtype,
) -> Memories:
    """Let every frozen part of a method answer from disk; what is not there is computed first.

    Args:
        config: Of the run; without `runtime.cache` nothing is done.
        method: On its device, with the weights that it starts from.
        dataset: The training images.
        accelerator: The main process computes, the others wait.
        rows: Images in a micro-batch; answers are computed for so many at once, so that they are what training gets.
        dtype: Of matrix products.

    Raises:
        ValueError: as `check_cache`, or if there is no room on the disk.
    """
    check_cache(config, method)
    if not config.runtime.cache:
        return Memories()
    hashes, data, size = frozen_hashes(method), data_key(dataset), method.takes().image_size  # type: ignore[operator]
    mirrored, device, memories = config.data.crop.flip, accelerator.device, []
    for name, part in frozen_parts(method).items():
        key = {
            "version": VERSION,
            "part": [hashes[name], settings(part)],
            "data": [data, asdict(dataset.scale)],
            "transform": [list(size), mirrored],
            "precision": [str(dtype), device.type],
        }
        folder = cache_folder() / "features" / sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
        batches = _views_of(dataset, size, rows, device, mirrored, config)
        with torch.no_grad(), autocast(device, dtype):
            first = torch.zeros(1, dataset.channels, *size, device=device)
            layout = Layout.of(part(first))

            def fill(
                part: nn.Module = part,
                folder: Path = folder,
                layout: Layout = layout,
                batches: Iterator[tuple[Tensor, np.ndarray]] = batches,
                key: dict[str, Any] = key,
            ) -> int:
                return _fill(part, folder, layout, batches, len(dataset) * (1 + int(mirrored)), key)

            computed = on_main(accelerator, fill)
        memory = Memory(name, folder, layout, mirrored, computed)
        part.forward = memory.answer  # names, hashes and all else of the part stay as they are
        memories.append(memory)
    return Memories(tuple(memories))


def settings(part: nn.Module) -> list[Any]:
    """Classes and plain settings of a part and of all that is in it, by name; where it came from is left out."""
    plain, without = (bool, int, float, str, tuple, type(None)), {"training", "source", "name"}
    return [
        [
            name,
            type(module).__name__,
            {
                key: str(value)
                for key, value in sorted(vars(module).items())
                if isinstance(value, plain) and key not in without and not key.startswith("_")
            },
        ]
        for name, module in part.named_modules()
    ]


def _views_of(
    dataset: Dataset, size: tuple[int, int], rows: int, device: torch.device, mirrored: bool, config: Pretrain
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """All images, as they are and mirrored, `rows` at once (the last ones repeated), and their rows in the file."""
    data = config.data
    found = evaluation_batches(dataset, size, rows, device, workers=data.workers, memory_gib=data.memory_gib)
    for images, ids in found:
        whole = images.repeat(-(-rows // len(images)), 1, 1, 1)[:rows]
        if not mirrored:
            yield whole, ids
            continue
        yield whole, ids * 2
        yield whole.flip(-1), ids * 2 + 1


def _fill(
    part: nn.Module,
    folder: Path,
    layout: Layout,
    batches: Iterator[tuple[Tensor, np.ndarray]],
    num_rows: int,
    key: dict[str, Any],
) -> int:
    """Make the files, unless they are there; gives the number of answers that were computed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if (folder / ABOUT).is_file():
            return 0
        needed, room = num_rows * sum(layout.sizes), shutil.disk_usage(folder.parent).free
        if needed > FREE_SHARE * room:
            raise ValueError(
                f"RuntimeConfig.cache must have room on the disk; got {room / 2**30:,.1f} GiB in {folder.parent}, and "
                f"{needed / 2**30:,.1f} GiB are needed. Set PANTOMIM_CACHE to a folder with more, or leave "
                f"--runtime.cache out."
            )
        temporary, computed = Path(tempfile.mkdtemp(dir=folder.parent, suffix=".tmp")), 0
        try:
            values = np.memmap(temporary / VALUES, np.uint8, "w+", shape=(num_rows, sum(layout.sizes)))
            checksums = np.zeros(num_rows, dtype=np.uint32)
            for images, places in batches:
                rows = layout.to_rows(part(images))[: len(places)]
                values[places] = rows
                checksums[places] = [zlib.crc32(row) for row in rows]
                computed += len(places)
            values.flush()
            np.save(temporary / CHECKSUMS, checksums)
            about = {"layout": layout.describe(), "rows": num_rows, "key": key}
            replace_file(temporary / ABOUT, (json.dumps(about, indent=2) + "\n").encode())
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return computed
