"""How the command's process ends: as one of several it leaves Python's own tidying out."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import atexit
import sys

class Kept:
    def __del__(self, write=sys.stderr.write):
        write("tidied ")

kept = Kept()
atexit.register(sys.stderr.write, "registered ")
sys.argv = ["pantomim", "--version"]
from pantomim.__main__ import main
main()
"""


@pytest.mark.parametrize(("processes", "ends"), [("1", "registered tidied"), ("2", "registered")])
def test_what_was_registered_runs_and_all_is_printed(processes: str, ends: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"WORLD_SIZE": processes},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr.strip()) == (0, ends)
    assert ended.stdout.startswith("pantomim ")
