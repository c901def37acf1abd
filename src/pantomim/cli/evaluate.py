from typing import Any

from pantomim.cli.command_line import CommandLine
from pantomim.cli.console import say


def evaluate(line: CommandLine) -> None:
    """Score an encoder or a fine-tuned network: pantomim evaluate PROTOCOL --data SRC ...; PROTOCOL --help has more."""
    from pantomim.evaluate import PROTOCOLS, TASK_PROTOCOLS, Evaluation, evaluate_to_file, headline

    line.options |= {f"{kind.trained_kind.capitalize()}.run": f"--{kind.trained_kind}" for kind in TASK_PROTOCOLS}
    kinds: tuple[Any, ...] = (*PROTOCOLS, *TASK_PROTOCOLS)
    protocol = line.read(line.choose({kind.protocol: kind for kind in kinds}), "Evaluation", "Segmentation")
    if isinstance(protocol, Evaluation):
        path, result = evaluate_to_file(protocol)
        words = headline(protocol, result)
    else:
        path, result = protocol.to_file()
        words = protocol.headline(result)
    say(f"{words}\nWritten to {path}.")
