from pantomim import verbs
from pantomim.cli.command_line import CommandLine
from pantomim.cli.console import grid, say, section, warn


def inspect_(line: CommandLine) -> None:
    """Look into runs and encoders, side by side: pantomim inspect ANALYSIS RUN [RUN ...].

    Examples:
        pantomim inspect NAME runs/first
        pantomim inspect NAME runs/first runs/second --images my_photos/ --out page.html
    """
    from pantomim.analysis import ANALYSES, LAYERS

    analysis = line.read(line.choose({kind.name: kind for kind in ANALYSES}))
    seen = verbs.look_into(analysis)
    for warning in seen.warnings:
        warn(warning)
    if seen.blocks is not None:
        headings, rows = LAYERS[analysis.name].table(seen.blocks)
        grid(headings, rows, title=analysis.title, title_justify="left")
    for shown in seen.pictures:
        section(shown.lead or analysis.title, [(row.title, row.text) for row in shown.rows if row.text])
    files = f", and beside it {', '.join(path.name for path in seen.files)}" if seen.files else ""
    say(f"\nPage: {seen.page}{files}")
