"""One file of ONNX: model.onnx, with a free batch; what stands in it about itself is in its metadata."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pantomim.formats.exports.destination import Destination, Loaded, quiet
from pantomim.formats.exports.network import Network, Outputs, facts
from pantomim.formats.exports.to_program import graph_of

FILE = "model.onnx"
CODE = """import onnxruntime

session = onnxruntime.InferenceSession("{file}")
print(session.get_modelmeta().custom_metadata_map)
({outputs},) = session.run(None, {{"images": images}})  # {images}, as a NumPy array"""


class ToONNX(Destination):
    """`onnxruntime.InferenceSession(FILE)`, for every network."""

    name = "onnx"

    def write(self, network: Network, folder: Path) -> tuple[str, str]:
        try:
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise self.missing("onnx") from error
        outputs = Outputs(network.module).eval()
        named: Any = {"input_names": ["images"], "output_names": list(outputs.names)}
        with quiet(), torch.no_grad():
            made: Any = torch.onnx.export(outputs, **graph_of(network), **named, dynamo=True, verbose=False)
        for name, value in facts(network).items():
            made.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value)
        made.save(folder / FILE)
        code = CODE.format(file=FILE, outputs=", ".join(outputs.names), images=facts(network)["images"])
        return f"an ONNX graph (opset {made.model.opset_imports['']}), whose batch is free", code

    def read(self, network: Network, folder: Path) -> Loaded:
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])

        def run(images: Tensor) -> tuple[Tensor, ...]:
            return tuple(map(torch.from_numpy, session.run(None, {"images": images.numpy()})))

        return run
