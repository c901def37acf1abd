"""Shape annotations are checked while tests run; one thread, so that sums are the same everywhere."""

import os

for library in ("OMP", "OPENBLAS", "MKL"):  # before NumPy and torch are imported
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

from jaxtyping import install_import_hook  # noqa: E402

PARTS = ("nn", "masking", "tokenizers", "targets", "methods")
install_import_hook([f"pantomim.{part}" for part in PARTS], "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)
