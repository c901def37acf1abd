from pantomim import verbs
from pantomim.cli.command_line import CommandLine, options_of
from pantomim.cli.console import say


def compare(line: CommandLine) -> None:
    """Make one page of several runs: pantomim compare RUN [RUN ...]."""
    line.options["report.run"] = "RUNS"
    say(f"Comparison: {verbs.compare(**line.read(options_of(verbs.compare)))}")
