from pantomim.cli.command_line import CommandLine
from pantomim.cli.console import grid, say, section, warn


def inspect_(line: CommandLine) -> None:
    """Look into runs and encoders, side by side: pantomim inspect ANALYSIS RUN [RUN ...].

    Examples:
        pantomim inspect NAME runs/first
        pantomim inspect NAME runs/first runs/second --images my_photos/ --out page.html
    """
    from pantomim.analysis import ANALYSES

    analysis = line.read(line.choose({kind.name: kind for kind in ANALYSES}))
    from pantomim.analysis.block_facts import write_block_facts
    from pantomim.analysis.inspection import LayerAnalysis
    from pantomim.analysis.pictures import write_rows
    from pantomim.core.files import check_out
    from pantomim.report.inspection import write_inspection, write_views

    check_out("inspect.out", analysis.page, analysis.endings)
    found = analysis.run()
    if isinstance(analysis, LayerAnalysis):
        for warning in found.about["warnings"]:
            warn(warning)
        written = write_block_facts(found, analysis.page)
        page = write_inspection(found, analysis.page)
        headings, rows = analysis.table(found)
        grid(headings, rows, title=analysis.title, title_justify="left")
    else:
        for seen in found:
            for warning in seen.warnings:
                warn(warning)
            told = [(row.title, row.text) for row in seen.rows if row.text]
            section(seen.lead or analysis.title, told)
        written = write_rows(found[0], analysis.page.with_suffix(".npz")) if len(found) == 1 else []
        page = write_views(found, analysis.title, analysis.page)
    files = f", and beside it {', '.join(path.name for path in written)}" if written else ""
    say(f"\nPage: {page}{files}")
