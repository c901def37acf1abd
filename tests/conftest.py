"""Shape annotations are checked while tests run; one thread, so that sums are the same everywhere; their own cache."""

import atexit
import os
import shutil
import tempfile

os.environ["PANTOMIM_CACHE"] = tempfile.mkdtemp(prefix="pantomim-tests-")  # for whatever the tests start, too
atexit.register(shutil.rmtree, os.environ["PANTOMIM_CACHE"], ignore_errors=True)
for library in ("OMP", "OPENBLAS", "MKL"):  # before NumPy and torch are imported
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

from jaxtyping import install_import_hook  # noqa: E402

PARTS = ("nn", "masking", "tokenizers", "teachers", "targets", "methods")
install_import_hook([f"pantomim.{part}" for part in PARTS], "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)
