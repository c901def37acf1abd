from pantomim.cli.command_line import CommandLine
from pantomim.cli.console import say


def evaluate(line: CommandLine) -> None:
    """Score a frozen encoder: pantomim evaluate PROTOCOL --encoder RUN --data SRC; PROTOCOL --help has its options."""
    from pantomim.evaluate import PROTOCOLS, evaluate_to_file, headline

    protocol = line.read(line.choose({protocol.protocol: protocol for protocol in PROTOCOLS}))
    path, result = evaluate_to_file(protocol)
    say(f"{headline(protocol, result)}\nWritten to {path}.")
