"""The command: `pantomim`, or `python -m pantomim` for `torchrun -m pantomim pretrain ...`."""

import sys


def main() -> None:
    """The command line; an interruption while it is imported is as silent as later ones."""
    try:
        from pantomim.cli import main as command
    except KeyboardInterrupt:
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()
