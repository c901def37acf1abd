"""One file of torch.export: model.pt2, with a free batch."""

import json
from pathlib import Path
from typing import Any

import torch

from pantomim.formats.exports.destination import Destination, Loaded
from pantomim.formats.exports.network import Network, Outputs, facts

FILE, EXTRA = "model.pt2", "pantomim.json"
CODE = """import json, torch

about = {{"{extra}": ""}}
model = torch.export.load("{file}", extra_files=about).module()
{outputs} = model(images)  # {images}
print(json.loads(about["{extra}"]))"""


class ToExportedProgram(Destination):
    """`torch.export.load(FILE)`, for every network."""

    name = "exported_program"

    def write(self, network: Network, folder: Path) -> str:
        """See `Destination.write`."""
        with torch.no_grad():
            program = torch.export.export(Outputs(network.module).eval(), **graph_of(network))
        torch.export.save(program, folder / FILE, extra_files={EXTRA: json.dumps(facts(network))})
        return "a program of torch.export, whose batch is free"

    def read(self, network: Network, folder: Path) -> Loaded:
        """See `Destination.read`."""
        model = torch.export.load(folder / FILE).module()
        return lambda images: tuple(model(images))

    def code(self, network: Network) -> str:
        """See `Destination.code`."""
        names = ", ".join(Outputs(network.module).names)
        return CODE.format(extra=EXTRA, file=FILE, outputs=f"({names},)", images=facts(network)["images"])


def graph_of(network: Network) -> dict[str, Any]:
    """What torch makes a graph of, by the names of its arguments: images of any number in."""
    images = torch.rand(2, network.encoder.in_chans, *network.encoder.image_size)
    free = ({0: torch.export.Dim("batch")},)
    return {"args": (images,), "dynamic_shapes": free}
