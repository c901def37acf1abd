from pantomim import verbs
from pantomim.cli.command_line import CommandLine, options_of
from pantomim.cli.console import say


def report(line: CommandLine) -> None:
    """Make RUN/report.html: what was run, curves, pictures, scores.

    Examples:
        pantomim report runs/first
        pantomim report runs/first --out page.html
    """
    say(f"Report: {verbs.report(**line.read(options_of(verbs.report)))}")
