"""Chains of runs: the student of each stage is the teacher of the next."""

from pantomim.stages.chain import run_stages
from pantomim.stages.plan import describe_stages, stage_run

__all__ = ["describe_stages", "run_stages", "stage_run"]
