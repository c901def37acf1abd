from typing import Any

from pantomim.cli.command_line import CommandLine
from pantomim.cli.console import say


def evaluate(line: CommandLine) -> None:
    """Score an encoder or a classifier: pantomim evaluate PROTOCOL --data SRC ...; PROTOCOL --help has its options."""
    from pantomim.evaluate import CLASSIFIER_PROTOCOLS, PROTOCOLS, Evaluation, evaluate_to_file, headline

    line.options["Classifier.run"] = "--classifier"
    kinds: tuple[Any, ...] = (*PROTOCOLS, *CLASSIFIER_PROTOCOLS)
    protocol = line.read(line.choose({kind.protocol: kind for kind in kinds}))
    if isinstance(protocol, Evaluation):
        path, result = evaluate_to_file(protocol)
        words = headline(protocol, result)
    else:
        path, result = protocol.to_file()
        words = protocol.headline(result)
    say(f"{words}\nWritten to {path}.")
