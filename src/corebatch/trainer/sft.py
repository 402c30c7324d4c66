"""The step inside TRL's SFTTrainer."""

from __future__ import annotations

from corebatch.errors import MissingExtraError
from corebatch.trainer.mixin import CoresetMixin

try:
    from trl import SFTTrainer
except ImportError as error:
    raise MissingExtraError("CoresetSFTTrainer needs trl: pip install 'corebatch[trl]'") from error


class CoresetSFTTrainer(CoresetMixin, SFTTrainer):
    """`trl.SFTTrainer` that draws a large batch at every step and trains on a small one. Packing and padding_free
    are refused: selection works on unpacked rows. The small batch's loss is corebatch's own where weights are not all
    one, so TRL's token accuracy and entropy are logged for evaluation only then; `num_tokens` counts what is trained.
    """
