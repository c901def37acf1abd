"""`python -m pantomim`, for `torchrun -m pantomim pretrain ...`."""

from pantomim.cli import main

if __name__ == "__main__":
    main()
