"""The way out: a network of ours as files of another library, which that library itself reads back for a check."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from pantomim.core.files import new_folder
from pantomim.core.names import check_there, one_of
from pantomim.formats.exports.card import CARD, check_name, upload, write_card
from pantomim.formats.exports.destination import Destination, largest_difference, quiet
from pantomim.formats.exports.network import Outputs, images_to_try, open_network
from pantomim.formats.exports.to_hf import ToHF
from pantomim.formats.exports.to_onnx import ToONNX
from pantomim.formats.exports.to_program import ToExportedProgram
from pantomim.formats.exports.to_timm import ToTimm

DESTINATIONS: tuple[Destination, ...] = (ToTimm(), ToHF(), ToONNX(), ToExportedProgram())
To = Literal["timm", "hf", "onnx", "exported_program"]
LIMIT = 1e-4  # of the largest difference, in float32
ROUNDING = 1e-5  # the same over the largest output, where outputs are large


@dataclass(frozen=True)
class Exported:
    """What was written and how far it is from ours; as text, a few plain lines."""

    out: Path
    what: str
    difference: float
    images: str  # what it was tried on
    code: str
    pushed: str | None = None  # the repository on the hub that it was uploaded to

    def __str__(self) -> str:
        text = f"{self.out}: {self.what}.\n{self.checked}\n\nIn that folder:\n\n{self.code}"
        where = f"\n\nUploaded to https://huggingface.co/{self.pushed}, for you alone to see."
        return text if self.pushed is None else text + where

    @property
    def checked(self) -> str:
        """How far it is from ours, in a sentence."""
        return f"Read back by its own library, it differs by {self.difference:.1e} at most, on {self.images}."


def export(
    run: str | Path,
    to: To,
    out: str | Path | None = None,
    *,
    image_size: tuple[int, int] | None = None,
    images: str | None = None,
    push: str | None = None,
) -> Exported:
    """Write a network as files of another library into a new folder, if that library then computes the same.

    Args:
        run: A run folder, whose classifier or segmenter leaves if it has one; a file of its weights, such as
            RUN/encoder.safetensors; or what `pantomim.load` takes.
        to: A name of `DESTINATIONS`.
        out: The folder; None: RUN/export/TO, with an image size RUN/export/TO-HxW.
        image_size: Height and width, positions resampled; None: those of training.
        images: Images to compare on; None: twelve of the run's data, or where they cannot be read drawn ones.
        push: The name of a new, private repository on the hub of Hugging Face that the folder is uploaded to.

    Raises:
        ValueError: if there is no such network, its library has none that is the same, or outputs differ.
        ConnectionError: if the hub cannot be reached; the folder stays.
    """
    from pantomim.formats import load_encoder

    place = one_of("export.to", to, {place.name: place for place in DESTINATIONS})
    check_there("export.run", run)
    if out is None and not Path(run).is_dir():
        raise ValueError(f"export.out must be given for a network outside a run folder; got {run}. Name a folder.")
    if push is not None:
        check_name(push)
    size = "" if image_size is None else f"-{image_size[0]}x{image_size[1]}"
    folder = Path(run) / "export" / f"{to}{size}" if out is None else Path(out)
    with new_folder("export.out", folder) as temporary:
        network = open_network(run, load_encoder, image_size)
        tried, words = images_to_try(network, images)
        what, code = place.write(network, temporary)
        ours, difference, allowed = Outputs(network.module).eval(), 0.0, LIMIT
        with torch.no_grad(), quiet():
            loaded = place.read(network, temporary)
            for batch in (tried, tried[:1]):  # the number of images is free
                difference = max(difference, largest_difference(loaded(batch), expected := ours(batch)))
                allowed = max(allowed, *(ROUNDING * float(output.abs().max()) for output in expected))
        if not difference <= allowed:
            raise ValueError(
                f"export.to must be a library that computes the same; got {difference:.1e} as the largest difference "
                f"of {what} on {words}, where {allowed:.1e} is rounding. Nothing was written: choose another place."
            )
        found = Exported(folder, what, difference, words, code)
        write_card(temporary, network, place.name, f"{what}. {found.checked}", found.code)
        mode = (temporary / CARD).stat().st_mode
        for file in temporary.iterdir():  # safetensors lets in the owner alone
            file.chmod(mode)
    return found if push is None else replace(found, pushed=upload(folder, push))
