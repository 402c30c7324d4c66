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

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from corebatch.errors import ConfigError, InputError, UnsupportedModelError
from corebatch.model.rows import row_spans

Run = Callable[..., Any]
"""What transformers hands to a checkpointing function: the block's forward with its keyword arguments bound."""

FUNCTION = "_gradient_checkpointing_func"
MARK_CHANNELS = 8
"""Channels of the first block's input that are kept, to see whether a row that moved within its micro-batch still
has the positions that it was scored at."""
MARK_TOLERANCE = 0.01  # relative; rounding in bfloat16 is 0.002, another position's embedding far more


# ---- which models ----------------------------------------------------------------------------------------------------


def unfit(model: nn.Module) -> str | None:
    """Why the scoring forward of this model cannot be reused, in one sentence; None if it can.

    Looks at modules and configuration alone. What only a forward shows (a model that adds something between its
    blocks, a scorer that changes rows) is found by `BlockStates`, which then keeps nothing and says so in `reason`.
    """
    for check in (_wrapping, _structure, _randomness, _state):
        found = check(model)
        if found is not None:
            return found
    return None


def _wrapping(model: nn.Module) -> str | None:
    """Compiled or sharded models: their blocks' forwards are not the modules' own, or the weights are not there."""
    for module in model.modules():
        kind = type(module).__name__
        if kind == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None:
            return "The model is compiled with torch.compile."
        if hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable"):
            return "A forward of the model is compiled with torch.compile."
        if kind == "FullyShardedDataParallel" or kind.startswith("FSDP"):
            return "The model is sharded by FSDP."
        if kind == "DeepSpeedEngine":  # it counts the gradients of a backward, and ours has one within another
            return "The model is run by DeepSpeed."
        if isinstance(module, nn.DataParallel):
            return "The model is wrapped in DataParallel."
    for parameter in model.parameters():
        if hasattr(parameter, "ds_id"):
            return "The model is sharded by DeepSpeed ZeRO-3."
        if hasattr(parameter, "device_mesh"):
            return "The model's parameters are DTensors (FSDP2 or tensor parallelism)."
    if len({str(parameter.device) for parameter in model.parameters()}) > 1:
        return "The model lies on more than one device."
    return None


def _structure(model: nn.Module) -> str | None:
    """One list of distinct blocks, all of them checkpointed."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        return "The model has no GradientCheckpointingLayer blocks."
    lists = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and any(isinstance(child, GradientCheckpointingLayer) for child in module)
    ]
    if len(lists) != 1 or list(map(id, lists[0])) != list(map(id, layers)):
        return f"The model's {len(layers)} checkpointed layers are not one list of distinct blocks."
    off = sum(not getattr(layer, "gradient_checkpointing", False) or not hasattr(layer, FUNCTION) for layer in layers)
    if off:
        return f"Activation checkpointing is off in {off} of {len(layers)} blocks."
    if any("forward" in vars(layer) or "__call__" in vars(layer) for layer in layers):
        return "The forward of a block has been replaced, so that it is perhaps not checkpointed."
    return None


_RANDOM = re.compile(
    r"(dropout|pdrop|dropout_p|dropout_prob|layerdrop|drop_path|drop_path_rate|jitter_noise|jitter_eps)$"
)
_UNUSED = ("summary_", "classifier_", "seq_classif_")  # of heads that a causal language model has not


def _randomness(model: nn.Module) -> str | None:
    """Whatever makes the training forward differ from the scoring forward, which runs in evaluation mode."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            return f"Dropout is active: {name or type(module).__name__} has p = {module.p}."
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return f"Batch normalisation ({name}) makes rows depend on each other."
        for key, value in vars(module).items():
            if _is_random(key, value):
                return f"Dropout or noise is active: {name}.{key} is {value}."
        if getattr(module, "neftune_noise_alpha", None):
            return "NEFTune adds noise to the embedding in training."
    for key, value in _settings(model):
        if _is_random(key, value):
            return f"Dropout or noise is active: the configuration's {key} is {value}."
    return None


def _is_random(key: str, value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        return False
    return _RANDOM.search(key) is not None and not key.startswith(_UNUSED)


_STATELESS = ("full_attention", "sliding_attention")


def _state(model: nn.Module) -> str | None:
    """Blocks whose output depends on more than their input's own row: other blocks, other rows, the padding."""
    settings = dict(_settings(model))
    if any(getattr(module, "_is_stateful", False) for module in model.modules()):
        return "The model is recurrent or hybrid: its blocks keep a state besides attention."
    other = [kind for kind in settings.get("layer_types") or () if kind not in _STATELESS]
    if other:
        return f"The model has layers of type {other[0]}, whose output depends on more than the row itself."
    if settings.get("num_kv_shared_layers"):
        return "The model's blocks share keys and values, so that one cannot be recomputed without another."
    if settings.get("attn_temperature_tuning"):
        return "The model scales attention by absolute position."
    ropes = {value for key, value in _settings(model) if key in ("rope_type", "type") and isinstance(value, str)}
    for rope in ropes & {"dynamic", "longrope"}:
        return f"The model's rotary embedding ({rope}) depends on the longest row of a micro-batch."
    for key in ("output_router_logits", "output_attentions"):
        if settings.get(key):
            return f"The configuration's {key} asks for what blocks compute inside."
    for module in model.modules():
        adapters = getattr(module, "peft_config", None)
        if isinstance(adapters, dict) and any(getattr(a, "is_prompt_learning", False) for a in adapters.values()):
            return "Prompt learning lengthens the rows."
    return None


def _settings(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Keys and values of the text model's configuration and of what is nested in it."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            yield from _leaves(module.config.get_text_config().to_dict())
            return


def _leaves(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield str(key), value


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


# ---- what is kept ----------------------------------------------------------------------------------------------------


class _Span(NamedTuple):
    """Where a row's tokens lie: `first` to `last` in the kept states, from `start` on in the scored micro-batch."""

    first: int
    last: int
    start: int


@dataclass(slots=True)
class _Kept:
    """Rows of one scored micro-batch without padding.

    Attributes:
        states: L + 1 tensors [tokens, ...]: some channels of the first block's input, then each block's output
            [tokens, D]; None once it has been handed on.
        spans: the rows that are still wanted.
        version: of the blocks' weights.
        sizes: of the blocks' weights, where they were measured; see `BlockStates.watched`.
    """

    states: list[Tensor | None]
    spans: dict[int, _Span]
    version: object
    sizes: Tensor | None = None

    def piece(self, row: int, index: int) -> Tensor:
        state, span = self.states[index], self.spans[row]
        if state is None:
            raise InputError(f"Row {row} of the pool has been recalled already: one recall serves one forward.")
        return state[span.first : span.last]

    def release(self, index: int) -> int:
        """Frees one state; its bytes."""
        state, self.states[index] = self.states[index], None
        return 0 if state is None else state.nbytes


class BlockStates:
    """What the blocks of a model put out for the rows of a pool.

    Of one step: states belong to the weights that they were computed with, and `recall` refuses others.

    Args:
        model: a model that `unfit` has nothing against; wrapped by DDP or not.
        place: where states are kept: on the model's device, or in host memory (pinned for CUDA).
        max_bytes: the most that is kept. The first micro-batch that would exceed it, and all that follow until the
            next `retain`, are not kept. Copying in `retain` adds what one block holds for the retained rows of one
            scored micro-batch, for a moment.

    Attributes:
        bytes: held now; up to the tokens kept x D x L x the size of a number.
        peak_bytes: the most that was held.
        watched: whether somebody's code runs between scoring and training, so that the weights' values are compared
            too.
        changed: whether weights were found to be others than those that the pool was scored with, since the last
            `retain`; nothing is recalled then.
        reason: why rows could not be kept or recalled although `unfit` found nothing; None if there was no such
            case. Rows that exceed `max_bytes` are none.

    Raises:
        UnsupportedModelError: the model has no blocks that are checkpointed.
        ConfigError: another place, or max_bytes below 0.
    """

    def __init__(
        self, model: nn.Module, *, place: Literal["device", "host"] = "device", max_bytes: int | None = None
    ) -> None:
        if place not in ("device", "host"):
            raise ConfigError(f"place should be 'device' or 'host'. Found {place!r}.")
        if max_bytes is not None and max_bytes < 0:
            raise ConfigError(f"max_bytes should be at least 0. Found {max_bytes}.")
        against = _structure(model)
        if against is not None:
            raise UnsupportedModelError(against)
        self.place = place
        self.max_bytes = max_bytes
        self.bytes = 0
        self.peak_bytes = 0
        self.reason: str | None = None
        self._blocks = _blocks(model)
        self._rows: dict[int, _Kept] = {}
        self._items = 0  # how many items a block's tuple has; 0 for a bare tensor
        self._full = False
        self._refused = False  # by a training forward: what it found does not change from step to step
        self._rows_may_move = False  # within a micro-batch; once it was seen that their embedding stays the same
        self._inspected: set[int] = set()
        self.watched = False
        self.changed = False

    @contextmanager
    def keep(self, rows: Sequence[int], batch: Mapping[str, Tensor]) -> Iterator[None]:
        """Open around the scoring of one micro-batch. The last complete forward in it is kept, if it went through
        all blocks in order, each taking what the one before put out; else nothing is, and `reason` may say why.

        Args:
            rows: the pool's numbers of the micro-batch's rows, B of them.
            batch: the micro-batch, with `labels`.
        """
        if len(rows) != len(batch["input_ids"]):
            raise InputError(
                f"There should be a number for each of the {len(batch['input_ids'])} rows. Found {len(rows)}."
            )
        if self._full or self._refused:
            yield
            return
        capture = _Capture(self, batch)
        with ExitStack() as hooks:
            for index, block in enumerate(self._blocks):
                enter, leave = partial(capture.enter, index), partial(capture.leave, index)
                hooks.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
                # First of all hooks: what a hook of somebody else makes of the output shows at the next block.
                hooks.callback(block.register_forward_hook(leave, with_kwargs=True, prepend=True).remove)
            yield
        if capture.objection is not None:
            self.reason = capture.objection
        elif len(capture.states) == len(self._blocks) + 1:
            self._commit(rows, capture)

    def _commit(self, rows: Sequence[int], capture: _Capture) -> None:
        self._drop(rows)  # a row that is scored again
        size = sum(state.nbytes for state in capture.states)
        if self._exceeded(size):
            return
        first, spans = 0, {}
        for row, (start, end) in zip(rows, capture.spans, strict=True):
            spans[row] = _Span(first, first + end - start, start)
            first += end - start
        self._items = capture.items
        kept = _Kept(list(capture.states), spans, self._version(), self._sizes())
        self._rows |= dict.fromkeys(spans, kept)
        self._hold(size)

    def _exceeded(self, size: int) -> bool:
        self._full |= self.max_bytes is not None and self.bytes + size > self.max_bytes
        return self._full

    def has(self, rows: Sequence[int]) -> bool:
        """Whether all of these rows of the pool are kept, and no training forward has shown that they are useless."""
        if self._refused or not all(row in self._rows for row in rows):
            return False
        self.changed |= not self._current({id(kept): kept for row in rows if (kept := self._rows[row])}.values())
        return not self.changed

    def _current(self, kept: Iterable[_Kept]) -> bool:
        """Whether these were computed with the weights as they are now."""
        version = self._version()
        if any(each.version != version for each in kept):
            return False
        sizes = self._sizes()
        return sizes is None or all(each.sizes is not None and torch.equal(each.sizes, sizes) for each in kept)

    def retain(self, rows: Iterable[int]) -> None:
        """Drops all other rows and frees their memory; `retain(())` empties the store. Rows that are retained are
        copied apart, block by block, so that each can be freed when it is trained."""
        wanted = set(rows)
        self._drop([row for row in self._rows if row not in wanted])
        self._full = self.changed = False
        if self.place == "host" and any(block.is_cuda for block in self._weights()):
            torch.cuda.current_stream().synchronize()  # copies to the host may still be on their way
        for kept in {id(kept): kept for kept in self._rows.values()}.values():
            self._split(kept)

    def _split(self, kept: _Kept) -> None:
        total = kept.states[0]
        assert total is not None
        if len(kept.spans) == 1 and all(span.last - span.first == len(total) for span in kept.spans.values()):
            return
        parts = {
            row: _Kept([], {row: _Span(0, s.last - s.first, s.start)}, kept.version, kept.sizes)
            for row, s in kept.spans.items()
        }
        for index in range(len(kept.states)):
            for row, part in parts.items():
                copy = _copy(kept.piece(row, index))
                part.states.append(copy)
                self._hold(copy.nbytes)
            self.bytes -= kept.release(index)
        self._rows |= parts

    @contextmanager
    def recall(self, places: Tensor, batch: Mapping[str, Tensor]) -> Iterator[None]:
        """Open around the training forward of one micro-batch. Its blocks do not run; the backward pass, which may
        come after this is closed, recomputes each once. The rows leave the store.

        If the model's first block is not given what it was given while scoring (positions that depend on padding),
        the blocks run with the model's own checkpointing instead, `reason` says so, and nothing more is kept.

        Args:
            places: LongTensor [k, 4], on the CPU for speed: row of the pool, row of the micro-batch, and start and
                end of its tokens there. Rows of the micro-batch may hold several, one after the other (padding-free);
                other positions are padding.
            batch: the micro-batch.

        Raises:
            InputError: a row is not kept, has another length, lies outside, or was scored with other weights.
            UnsupportedModelError: in the backward pass, a block uses a trained tensor that is not its own.
        """
        found = [_Place(*place) for place in places.tolist()]
        self._check(found, batch)
        own = [vars(block).get(FUNCTION, _ABSENT) for block in self._blocks]
        usual = [getattr(block, FUNCTION) for block in self._blocks]
        forward = _Forward(self, found, (batch["input_ids"].shape[0], batch["input_ids"].shape[1]), usual)
        try:
            for index, block in enumerate(self._blocks):
                setattr(block, FUNCTION, partial(forward.run, index))
            yield
        finally:
            for block, function in zip(self._blocks, own, strict=True):
                if function is _ABSENT:
                    delattr(block, FUNCTION)
                else:
                    setattr(block, FUNCTION, function)
            self._drop({place.row for place in found})

    def _check(self, places: Sequence[_Place], batch: Mapping[str, Tensor]) -> None:
        shape, version = batch["input_ids"].shape, self._version()
        for row, line, start, end in places:
            kept = self._rows.get(row)
            if kept is None:
                raise InputError(f"Row {row} of the pool is not kept.")
            if kept.version != version:
                raise InputError(f"The weights have changed since row {row} of the pool was scored.")
            length = kept.spans[row].last - kept.spans[row].first
            if end - start != length or not (0 <= line < shape[0] and start >= 0 and end <= shape[1]):
                raise InputError(
                    f"Row {row} of the pool has {length} tokens; its place should hold as many in a micro-batch of "
                    f"shape {tuple(shape)}. Found row {line}, {start} to {end}."
                )

    def _drop(self, rows: Iterable[int]) -> None:
        for row in rows:
            kept = self._rows.pop(row, None)
            if kept is not None:
                del kept.spans[row]
                if not kept.spans:
                    self.bytes -= sum(kept.release(index) for index in range(len(kept.states)))

    def _hold(self, size: int) -> None:
        self.bytes += size
        self.peak_bytes = max(self.peak_bytes, self.bytes)

    def _weights(self) -> Iterator[nn.Parameter]:
        for block in self._blocks:
            yield from block.parameters()

    def _version(self) -> object:
        """Another one after each change of the blocks' weights in place, as optimizers change them, or for others."""
        weights = list(self._weights())
        return sum(weight._version for weight in weights), hash(tuple(weight.data_ptr() for weight in weights))

    def _sizes(self) -> Tensor | None:
        """Norms of the blocks' weights [one each]: changes through `weight.data` leave no version."""
        weights = [weight.detach() for weight in self._weights() if weight.is_floating_point()]
        return torch.stack(torch._foreach_norm(weights)).float() if self.watched and weights else None


_ABSENT = object()


def _copy(state: Tensor) -> Tensor:
    """A compact copy, in pinned memory if the original is."""
    return torch.empty(state.shape, dtype=state.dtype, device=state.device, pin_memory=state.is_pinned()).copy_(state)


class _Capture:
    """The hooks of one `keep`.

    Attributes:
        spans: start and end of each row.
        states: see `_Kept`; as many as were seen so far.
        items: see `BlockStates`.
        objection: why this forward cannot be kept.
    """

    def __init__(self, store: BlockStates, batch: Mapping[str, Tensor]) -> None:
        self._store = store
        self._shape = batch["input_ids"].shape
        self.spans: list[list[int]] = row_spans(batch).tolist()
        self._index: Tensor | None = None
        self._begin()

    def _begin(self) -> None:
        self.states: list[Tensor] = []
        self.items = 0
        self.objection: str | None = None
        self._active = True
        self._entered = -1
        self._last: tuple[Tensor, int] | None = None

    def _refuse(self, objection: str | None) -> None:
        self.objection = objection
        self._active = False
        self._last = None
        self.states = []

    def enter(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if index == 0:
            self._begin()  # a scorer may trace the model first: the last forward counts
        if not self._active:
            return
        if self._entered + 1 != index or len(self.states) != (index + 1 if index else 0):
            self._refuse("The model does not run all of its blocks in order, each once.")
            return
        self._entered = index
        if not args or not isinstance(args[0], Tensor):
            self._refuse("The model passes hidden states to its blocks by keyword.")
        elif index == 0:
            self._first(args[0])
        elif self._last is None or not _same(args[0], *self._last):
            self._refuse(f"The model changes hidden states between blocks {index - 1} and {index}.")

    def _first(self, hidden: Tensor) -> None:
        if not self._fits(hidden, 0):
            return
        width, tokens = hidden.shape[-1], sum(end - start for start, end in self.spans)
        mark = hidden[..., :: max(1, width // MARK_CHANNELS)]
        layers = len(self._store._blocks)
        need = tokens * (width * layers + mark.shape[-1]) * hidden.element_size()
        if self._store._exceeded(need):
            self._refuse(None)
            return
        self.states.append(self._take(mark))

    def leave(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self._active:
            return
        if index != self._entered or len(self.states) != index + 1:
            self._refuse("The model does not run all of its blocks in order, each once.")
            return
        hidden = output
        if isinstance(output, tuple):
            # Attention weights that nobody has asked for are not read: GPT-J, Bloom and MPT return them all the same.
            unread = len(output) == 2 and kwargs.get("output_attentions", True) is False
            if len(output) > 1 and not unread and any(item is not None for item in output[1:]):
                self._refuse(f"Blocks return {len(output)} values, not hidden states alone.")
                return
            self.items, hidden = len(output), output[0]
        if isinstance(hidden, Tensor) and self._fits(hidden, index):
            self.states.append(self._take(hidden))
            self._last = hidden.detach(), hidden._version

    def _fits(self, hidden: Tensor, index: int) -> bool:
        if hidden.ndim == 3 and hidden.shape[:2] == self._shape:
            return True
        self._refuse(
            f"The hidden states of block {index} should have shape {[*self._shape, 'D']}. Found {list(hidden.shape)}: "
            "the scorer or the model changes rows or tokens."
        )
        return False

    def _take(self, hidden: Tensor) -> Tensor:
        """[B, T, X] -> [tokens, X] where it is to be kept."""
        if self._index is None or self._index.device != hidden.device:
            width = self._shape[1]
            parts = [torch.arange(b * width + s, b * width + e) for b, (s, e) in enumerate(self.spans)]
            self._index = torch.cat(parts).to(hidden.device)
        with torch.no_grad():
            compact = hidden.detach().flatten(0, 1).index_select(0, self._index)
        if self._store.place == "device":
            return compact
        if not compact.is_cuda:
            return compact.cpu()
        host = torch.empty(compact.shape, dtype=compact.dtype, pin_memory=True)
        return host.copy_(compact, non_blocking=True)


def _same(one: Tensor, other: Tensor, version: int) -> bool:
    """Whether `one` is `other`'s data, not changed in place since."""
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one._version == version
    )


# ---- the training forward --------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    row: int
    line: int
    start: int
    end: int


class _Forward:
    """One training forward in which no block runs."""

    def __init__(
        self, store: BlockStates, places: Sequence[_Place], shape: tuple[int, int], usual: Sequence[Run]
    ) -> None:
        self._store = store
        self._kept = {place.row: store._rows[place.row] for place in places}
        self._places = places
        self._shape = shape
        self._usual = usual
        self._plainly = False

    def run(self, index: int, run: Run, *args: Any) -> Any:
        """In place of the checkpointing function of block `index`."""
        store = self._store
        if index == 0:
            against = self._against(run, args)
            if against is not None:
                self._plainly = store._refused = True
                store.reason = against
        if self._plainly:
            return self._usual[index](run, *args)
        hidden: Tensor = args[0]
        block = store._blocks[index]
        parameters = [parameter for parameter in block.parameters() if parameter.requires_grad]
        gather = partial(self._gather, index, hidden)
        if torch.is_grad_enabled() and (parameters or hidden.requires_grad):
            recompute = _Recompute(partial(_hidden, run, args[1:]), parameters, hidden.device, index, store._inspected)
            output = _Recalled.apply(hidden, gather, recompute, *parameters)
        else:
            output = gather()
        return output if not store._items else (output, *[None] * (store._items - 1))

    def _gather(self, index: int, hidden: Tensor) -> Tensor:
        """The output [B, T, D] of block `index`, zero where there is padding; frees what it is made of."""
        pieces = [self._kept[place.row].piece(place.row, index + 1) for place in self._places]
        dtype = pieces[0].dtype if pieces else hidden.dtype
        output = torch.zeros(*self._shape, hidden.shape[-1], dtype=dtype, device=hidden.device)
        for place, piece in zip(self._places, pieces, strict=True):
            output[place.line, place.start : place.end].copy_(piece, non_blocking=True)
        for kept in self._kept.values():
            if len(kept.spans) == 1:
                self._store.bytes -= kept.release(index + 1)
        return output

    def _against(self, run: Run, args: tuple[Any, ...]) -> str | None:
        """Why the first block's input is not what it was while scoring, or not all that gradients flow to."""
        if not args or not isinstance(args[0], Tensor) or args[0].shape[:2] != self._shape:
            return "The training forward gives the blocks hidden states of another shape than its inputs."
        if any(tensor.requires_grad for tensor in _tensors((args[1:], getattr(run, "keywords", {})))):
            return "Blocks take another trained input besides hidden states."
        moved = [p for p in self._places if self._kept[p.row].spans[p.row].start != p.start]
        if not moved or self._store._rows_may_move:
            return None
        hidden = args[0].detach()
        now = torch.cat([hidden[p.line, p.start : p.end] for p in moved])
        now = now[:, :: max(1, now.shape[-1] // MARK_CHANNELS)].float()
        before = torch.cat([self._kept[p.row].piece(p.row, 0).to(now.device) for p in moved]).float()
        # The one look at a device's numbers, until it has been seen once.
        self._store._rows_may_move = bool((now - before).norm() <= MARK_TOLERANCE * before.norm())
        if self._store._rows_may_move:
            return None
        return (
            "The embedding of a row depends on its padding (absolute positions without position_ids), so that what "
            "was scored is not what is trained."
        )


def _tensors(value: object) -> Iterator[Tensor]:
    """All tensors in nested arguments of a block."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _hidden(run: Run, rest: tuple[Any, ...], hidden: Tensor) -> Tensor:
    output = run(hidden, *rest)
    return output[0] if isinstance(output, tuple) else output


class _Recompute:
    """A block's forward with gradients, in the autocast of the training forward."""

    def __init__(
        self,
        run: Callable[[Tensor], Tensor],
        parameters: Sequence[nn.Parameter],
        device: torch.device,
        index: int,
        inspected: set[int],
    ) -> None:
        self._run = run
        self.parameters = parameters
        self._index = index
        self._inspected = inspected
        kinds = {device.type, "cpu"}
        self._autocast = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), torch.is_autocast_cache_enabled())
            for kind in sorted(kinds)
        ]

    def __call__(self, hidden: Tensor) -> Tensor:
        with ExitStack() as modes:
            modes.enter_context(torch.enable_grad())
            for kind, dtype, enabled, cache in self._autocast:
                modes.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=cache))
            output = self._run(hidden)
        if self._index not in self._inspected:
            self._inspect(output, hidden)
            self._inspected.add(self._index)
        return output

    def _inspect(self, output: Tensor, hidden: Tensor) -> None:
        """Gradients are taken by the block's own parameters: any other would silently get none."""
        known = {id(hidden), *map(id, self.parameters)}
        stack, seen = [output.grad_fn], set()
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            leaf = getattr(node, "variable", None)
            if leaf is not None and id(leaf) not in known:
                raise UnsupportedModelError(
                    f"Block {self._index} uses a trained tensor of shape {list(leaf.shape)} that is not its own: the "
                    "scoring forward of this model cannot be reused."
                )
            stack.extend(following for following, _ in node.next_functions)


class _Recalled(torch.autograd.Function):
    """A block whose output is known: nothing is computed forward, and backward recomputes it from its input.

    The block's parameters are inputs, not leaves of a nested backward as in reentrant checkpointing: the engine
    accumulates their gradients itself, so that hooks on them and DDP's search for unused parameters work as usual.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, gather: Callable[[], Tensor], recompute: _Recompute, *parameters: Tensor
    ) -> Tensor:
        ctx.save_for_backward(hidden)
        ctx.recompute = recompute
        return gather()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (hidden,) = ctx.saved_tensors
        recompute, through = ctx.recompute, ctx.needs_input_grad[0]
        hidden = hidden.detach().requires_grad_(through)
        output = recompute(hidden)
        wanted = [*([hidden] if through else []), *recompute.parameters]
        if not output.requires_grad:
            return (None,) * (3 + len(recompute.parameters))
        grads = torch.autograd.grad(output, wanted, grad.to(output.dtype), allow_unused=True)
        return (grads[0] if through else None, None, None, *grads[through:])
