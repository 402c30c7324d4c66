"""What other packages say and no user could change is kept back."""

from __future__ import annotations

import logging
import os
import warnings


def hush() -> None:
    """Keeps back what other packages say and no user could change."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # peft 0.21 reads an attribute that transformers 5 calls deprecated
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    # bitsandbytes 0.50 asks, whenever it is imported on a CPU, for a package that fetches a kernel from a hub
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
