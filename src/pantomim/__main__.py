"""The command: `pantomim`, or `python -m pantomim` for `torchrun -m pantomim pretrain ...`."""

import atexit
import os
import sys
from typing import NoReturn


def main() -> None:
    """The command line; an interruption while it is imported is as silent as later ones."""
    try:
        from pantomim.cli import main as command
    except KeyboardInterrupt:
        sys.exit(130)
    command()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        end_one_of_several()


def end_one_of_several() -> NoReturn:
    """End without Python's own tidying: a thread of gloo that frees a tensor meanwhile would abort the process.

    Such a thread outlives its group (https://github.com/pytorch/pytorch/pull/179291), and the launcher would call a
    finished run failed.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
