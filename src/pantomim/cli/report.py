from pathlib import Path

from tyro.conf import Positional

from pantomim.cli.command_line import typed
from pantomim.cli.console import say, warn


@typed()
def report(
    run: Positional[Path], headline: str | None = None, out: Path | None = None, data: str | None = None
) -> None:
    """Make RUN/report.html: what was run, curves, pictures, scores.

    Args:
        run: A run folder, or that of a chain of runs.
        headline: The evaluation in RUN/eval whose score stands at the top, such as linear-10-mnist.
        out: FILE.html; by default RUN/report.html. Needed for a run that you may read but not write to.
        data: Where the images of the run lie now, if they have moved.
    """
    from pantomim.analysis import write_all_pictures
    from pantomim.core.files import check_out
    from pantomim.report import is_chain, make_report, make_stages_report

    if run.is_dir():
        check_out("report.out", out or run / "report.html", (".html", ".htm"))
    if is_chain(run):
        if headline is not None:
            raise ValueError(
                f"report.headline must be left out for a chain of runs; got {headline} for {run}. Leave it out."
            )
        say(f"Report: {make_stages_report(run, out)}")
        return
    if (run / "encoder.safetensors").exists():
        try:
            write_all_pictures(run, source=data)
        except (ValueError, OSError) as error:  # the data have moved, say: the rest of the page needs only the folder
            moved = " If the images have moved, name their place by --data." if str(error).startswith("Source.") else ""
            warn(f"{error}{moved}", "no new pictures")
    say(f"Report: {make_report(run, headline, out)}")
