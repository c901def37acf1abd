"""A folder of images as other kinds of source that hold the same."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow
import pyarrow.parquet

from pantomim.data.pack import write_pack
from pantomim.data.sources import read_contents


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_parquet(path: Path, images: Mapping[str, bytes], labels: list[int], names: list[str], rows: int = 3) -> Path:
    """As the datasets library writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    column = pyarrow.array([{"bytes": data, "path": name} for name, data in images.items()])
    table = pyarrow.table({"image": column, "label": pyarrow.array(labels)})
    told = {"huggingface": json.dumps({"info": {"features": features}})}
    pyarrow.parquet.write_table(table.replace_schema_metadata(told), path, row_group_size=rows)
    return path


def same_as(folder: Path, kind: str, out: Path) -> str:
    """The images of `folder`, in SPLIT/CLASS/, as another source."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}
    by_split: dict[str, dict[str, bytes]] = {}
    for name, data in files.items():
        split, _, inside = name.partition("/")
        by_split.setdefault(split, {})[inside] = data
    if kind == "pack":
        write_pack(read_contents(str(folder)), "images", out / "same.pack")
        return str(out / "same.pack")
    if kind == "tars of the folder":
        halves = list(files.items())[::2], list(files.items())[1::2]
        for number, half in enumerate(halves):
            write_tar(out / f"shard-{number:03}.tar", dict(half))
        return f"{out}/shard-{{000..{len(halves) - 1:03}}}.tar"
    for split, inside in by_split.items():
        classes = [name.partition("/")[0] for name in inside]
        if kind == "tars of a split":
            labelled = [(name, data, name.partition(".")[0]) for name, data in inside.items()]
            members = {name: data for name, data, _ in labelled}
            members |= {f"{key}.json": json.dumps({"class": key.partition("/")[0]}).encode() for *_, key in labelled}
            write_tar(out / f"pets-{split}-0000.tar", members)
        else:
            names = sorted(set(classes))
            write_parquet(out / f"data/{split}-00000-of-00001.parquet", inside, list(map(names.index, classes)), names)
    return str(out)
