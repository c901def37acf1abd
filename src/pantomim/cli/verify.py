import sys
from pathlib import Path

from tyro.conf import Positional

from pantomim.cli.command_line import typed
from pantomim.cli.console import say


@typed()
def verify(folder: Positional[Path | None] = None) -> None:
    """Compare our modules with golden tensors made by the authors' code; exit status 1 if any differs.

    Examples:
        pantomim verify

    Args:
        folder: Holds NAME.json and NAME.safetensors pairs; by default the selection that comes with the package.
    """
    from pantomim import parity

    results = parity.verify(folder or parity.GOLDEN)
    for text in parity.format_results(results):
        say(text)
    if any(result.status == "FAIL" for result in results):
        sys.exit(1)
