"""The scoring forward, used again: the chosen rows' blocks are not run a second time before the backward pass.

With activation checkpointing a training step is forward, recompute, backward. The pool has been through a forward
without gradients already, with the same weights, so what that first forward is for (the input of each block) is
known for the chosen rows. `BlockStates.keep` takes these inputs while the pool is scored; `BlockStates.recall` hands
them to the blocks of the training forward, which are then only recomputed, each once, in the backward pass. What lies
outside of the blocks (embedding, positions, masks, last norm, head, loss) runs as it always does.

The seam is `GradientCheckpointingLayer` of transformers, which calls
`self._gradient_checkpointing_func(partial(forward, self, **kwargs), hidden, *args)` in training mode.

Shape suffixes: B rows of a micro-batch, T tokens, D hidden, L blocks.
"""

from corebatch.model.recompute.capture import MARK_CHANNELS
from corebatch.model.recompute.fit import unfit
from corebatch.model.recompute.states import BlockStates

__all__ = ["MARK_CHANNELS", "BlockStates", "unfit"]
