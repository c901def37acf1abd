from rich.text import Text

from pantomim import verbs
from pantomim.cli.command_line import CommandLine
from pantomim.cli.console import result, section
from pantomim.cli.run_options import read_run


def explain(line: CommandLine) -> None:
    """Print what a run would be: pantomim explain RECIPE [--data SRC] [--any.setting value]; costs nothing.

    Examples:
        pantomim explain RECIPE --data my_photos/
        pantomim explain RECIPE --data my_photos/ --size micro --steps 500
    """
    explanation = verbs.explain(**read_run(line, verbs.explain)[0])
    result().print(Text.assemble((explanation.recipe, "bold"), ": ", explanation.summary))
    for title, rows in explanation.sections:
        section(title, rows)
