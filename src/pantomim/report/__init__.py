"""One page about a run, made from its folder alone."""

from pantomim.report.page import make_report

__all__ = ["make_report"]
