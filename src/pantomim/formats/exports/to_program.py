"""One file of torch.export: model.pt2, with a free batch."""

import json
from pathlib import Path

import torch
from torch import Tensor

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
        torch.export.save(program(network), folder / FILE, extra_files={EXTRA: json.dumps(facts(network))})
        return "a program of torch.export, whose batch is free"

    def read(self, network: Network, folder: Path) -> Loaded:
        """See `Destination.read`."""
        model = torch.export.load(folder / FILE).module()
        return lambda images: tuple(model(images))

    def code(self, network: Network) -> str:
        """See `Destination.code`."""
        names = ", ".join(Outputs(network.module).names)
        return CODE.format(extra=EXTRA, file=FILE, outputs=f"({names},)", images=facts(network)["images"])


def program(network: Network) -> torch.export.ExportedProgram:
    """The graph of a network, images of any number in."""
    outputs = Outputs(network.module).eval()
    images: Tensor = torch.rand(2, network.encoder.in_chans, *network.encoder.image_size)
    with torch.no_grad():
        return torch.export.export(outputs, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
