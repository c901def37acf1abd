from pantomim.cli.command_line import CommandLine
from pantomim.cli.console import grid, say, section, warn


def inspect_(line: CommandLine) -> None:
    """Look into runs and encoders, side by side: pantomim inspect ANALYSIS RUN [RUN ...]."""
    from pantomim.analysis import ANALYSES
    from pantomim.analysis.alignment import Alignment
    from pantomim.analysis.guidance import Guidance
    from pantomim.analysis.inspection import LayerAnalysis, write_rows_of
    from pantomim.core.files import check_out

    analysis = line.read(line.choose({kind.name: kind for kind in ANALYSES}))
    if isinstance(analysis, Guidance):
        (run,) = analysis.encoders
        path = write_rows_of(Guidance, run, images=analysis.images, count=analysis.count, seed=analysis.seed)
        say(f"Pictures: {path}; `pantomim report {run}` shows them.")
        return
    check_out("inspect.out", analysis.page, (".html", ".htm"))
    if isinstance(analysis, Alignment):
        from pantomim.report.inspection import write_alignment

        found = analysis.run()
        page, picture = write_alignment(found, analysis.page)
        section(analysis.title, [(row.title, row.text) for row in found.rows if row.text])
        say(f"\nPage: {page}, and as a picture: {picture}")
        return
    from pantomim.analysis.block_facts import write_block_facts
    from pantomim.report.inspection import write_inspection

    assert isinstance(analysis, LayerAnalysis)
    facts = analysis.run()
    for warning in facts.about["warnings"]:
        warn(warning)
    written = write_block_facts(facts, analysis.page)
    page = write_inspection(facts, analysis.page)
    headings, rows = analysis.table(facts)
    grid(headings, rows, title=analysis.title, title_justify="left")
    say(f"\nPage: {page}, numbers: {', '.join(map(str, written))}")
