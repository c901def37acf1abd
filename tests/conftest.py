"""Shape annotations are checked while tests run; one thread, so that sums are the same everywhere."""

from jaxtyping import install_import_hook

install_import_hook(["pantomim.nn", "pantomim.masking", "pantomim.targets", "pantomim.methods"], "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)
