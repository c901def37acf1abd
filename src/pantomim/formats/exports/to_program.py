"""One file of torch.export: model.pt2, with a free batch."""

import json
from pathlib import Path
from typing import Any

import torch

from pantomim.formats.exports.destination import Destination, Loaded, quiet
from pantomim.formats.exports.network import Network, Outputs, facts

FILE, EXTRA = "model.pt2", "pantomim.json"
CODE = """import json, torch

about = {{"{extra}": ""}}
model = torch.export.load("{file}", extra_files=about).module()
({outputs},) = model(images)  # {images}
print(json.loads(about["{extra}"]))"""


class ToExportedProgram(Destination):
    """`torch.export.load(FILE)`, for every network."""

    name = "exported_program"

    def write(self, network: Network, folder: Path) -> tuple[str, str]:
        outputs, told = Outputs(network.module).eval(), facts(network)
        with quiet(), torch.no_grad():
            program = torch.export.export(outputs, **graph_of(network))
        torch.export.save(program, folder / FILE, extra_files={EXTRA: json.dumps(told)})
        code = CODE.format(extra=EXTRA, file=FILE, outputs=", ".join(outputs.names), images=told["images"])
        return "a program of torch.export, whose batch is free", code

    def read(self, network: Network, folder: Path) -> Loaded:
        model = torch.export.load(folder / FILE).module()
        return lambda images: tuple(model(images))


def graph_of(network: Network) -> dict[str, Any]:
    """What torch makes a graph of, by the names of its arguments: images of any number in."""
    images = torch.rand(2, network.encoder.in_chans, *network.encoder.image_size)
    free = ({0: torch.export.Dim("batch")},)
    return {"args": (images,), "dynamic_shapes": free}
