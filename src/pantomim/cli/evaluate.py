from typing import Any

from pantomim import verbs
from pantomim.cli.command_line import CommandLine
from pantomim.cli.console import say


def evaluate(line: CommandLine) -> None:
    """Score an encoder or a fine-tuned network: pantomim evaluate PROTOCOL --data SRC ...; PROTOCOL --help has more."""
    from pantomim.evaluate import PROTOCOLS, TASK_PROTOCOLS

    line.options |= {f"{kind.network.kind.capitalize()}.run": f"--{kind.network.kind}" for kind in TASK_PROTOCOLS}
    kinds: tuple[Any, ...] = (*PROTOCOLS, *TASK_PROTOCOLS)
    kind = line.choose({kind.protocol: kind for kind in kinds})
    network = f"--{kind.network.kind}" if kind in TASK_PROTOCOLS else "--encoder"
    run = {"--classifier": "runs/classes", "--segmenter": "runs/masks"}.get(network, "runs/first")
    begin = f"pantomim {line.command} {network} {run} --data my_photos/"
    line.examples = [begin, f"{begin} --out scores.json"]
    protocol = line.read(kind, "Evaluation", "Segmentation")
    scored = verbs.score(protocol)
    say(f"{scored}\nWritten to {scored.path}.")
