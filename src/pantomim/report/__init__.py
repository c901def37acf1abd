"""One page about a run, made from its folder alone; of a chain of runs, one about all stages."""

from pantomim.report.page import make_report
from pantomim.report.stages import is_chain, make_stages_report

__all__ = ["is_chain", "make_report", "make_stages_report"]
