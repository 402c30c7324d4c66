"""The scoring forward used again: the gradients of the ordinary checkpointed step, without its first forward."""

import contextlib
import copy
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from corebatch.errors import ConfigError, InputError, UnsupportedModelError
from corebatch.model import recompute as reuse
from corebatch.model.modes import forward_inputs, scoring_mode
from corebatch.model.recompute import BlockStates, unfit
from corebatch.model.rows import Padding, put_together, row_spans, take_rows
from corebatch.model.weighted_loss import weighted_loss
from corebatch.scoring import LastLayer, Loss, ZerothOrder
from models import (
    ARCHITECTURES,
    FUSED,
    HIDDEN,
    LAYERS,
    TOKENS,
    adapted,
    batch_for,
    tiny_batch,
    tiny_model,
    value_modules,
)

CHOSEN = ((8, 0, 4), (2, 6))  # rows of the pool in each micro-batch that is trained
WEIGHTS = (torch.tensor([0.5, 2.0, 1.25]), torch.tensor([3.0, 0.75]))
SINGLE = {"gemma2": torch.float32}  # eager attention masks with float64's least number and has a float32 softmax: NaN
# Relative to the whole gradient. MPT has a float32 softmax, and its biases depend on a micro-batch's width.
TOLERANCES = {"gemma2": 1e-6, "mpt": 1e-6}

Batch = dict[str, Tensor]
LossOf = Callable[[nn.Module, Batch, int], Tensor]


def checkpointed(model: Any, *, reentrant: bool = True) -> Any:
    """In training mode with activation checkpointing, as the Trainer sets it up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant and not any(parameter.requires_grad for parameter in model.get_input_embeddings().parameters()):
        model.enable_input_require_grads()
    return model.train()


def pool(kind: str = "llama", *, left: bool = False) -> list[Batch]:
    """Two micro-batches of 5 rows, unlike in width."""
    return [
        batch_for(kind, rows=5, width=12, left=left, pad=1),
        batch_for(kind, rows=5, width=9, left=left, pad=3, seed=2),
    ]


def training(batches: Sequence[Batch], *, left: bool = False, chosen: Any = CHOSEN) -> list[tuple[Batch, Tensor]]:
    """Micro-batches of the chosen rows, and where their tokens lie."""
    made = []
    for rows in chosen:
        batch = put_together(take_rows(batches, rows), Padding(token=0, left=left))
        spans = row_spans(batch).tolist()
        made.append((batch, torch.tensor([[row, i, *spans[i]] for i, row in enumerate(rows)])))
    return made


def weighted(model: nn.Module, batch: Batch, number: int) -> Tensor:
    return weighted_loss(model, model, batch, WEIGHTS[number].to(torch.float64))[0] / 7


def plain(model: nn.Module, batch: Batch, number: int) -> Tensor:
    return model(**batch).loss


def scored(model: nn.Module, batches: Sequence[Batch], scorer: Any = None, **settings: Any) -> BlockStates:
    states, start = BlockStates(model, **settings), 0
    for batch in batches:
        rows = range(start, start + len(batch["input_ids"]))
        with states.keep(rows, batch):
            (scorer or Loss()).run(model, batch)
        start = rows.stop
    return states


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    for parameter in model.parameters():
        parameter.grad = None
    return found


def usual(model: nn.Module, made: Sequence[tuple[Batch, Tensor]], loss: LossOf) -> dict[str, Tensor]:
    for number, (batch, _) in enumerate(made):
        loss(model, batch, number).backward()
    return gradients(model)


def reused(
    model: nn.Module, made: Sequence[tuple[Batch, Tensor]], loss: LossOf, states: BlockStates
) -> dict[str, Tensor]:
    for number, (batch, places) in enumerate(made):
        with states.recall(places, batch):
            value = loss(model, batch, number)
        value.backward()
    return gradients(model)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    assert expected
    # One figure of the whole gradient's size: a key's bias has a gradient of zero, give or take rounding.
    scale = torch.stack([g.double().norm() for g in expected.values()]).norm()
    for name, gradient in expected.items():
        assert float((found[name] - gradient).double().norm() / scale) <= tolerance, name


@contextlib.contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """Which blocks' value projections run."""
    ran: list[int] = []
    modules = value_modules(model, "llama")
    handles = [m.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, m in enumerate(modules)]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def blocks(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_gradients_of_the_checkpointed_step(kind: str, lora: bool) -> None:
    model = checkpointed(tiny_model(kind, lora=lora, dtype=SINGLE.get(kind, torch.float64)), reentrant=lora)
    assert unfit(model) is None
    batches = pool(kind)
    made = training(batches)
    states = scored(model, batches, LastLayer(num_blocks=2))
    assert states.reason is None
    assert states.has(range(10))
    expected = usual(model, made, weighted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_equal(reused(model, made, weighted, states), expected, TOLERANCES.get(kind, 1e-12))
    assert states.reason is None


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("loss", [plain, weighted])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3", "falcon_new"])
@pytest.mark.parametrize("lora", [False, True])
def test_both_baselines_both_losses(kind: str, loss: LossOf, reentrant: bool, lora: bool) -> None:
    model = checkpointed(tiny_model(kind, lora=lora), reentrant=reentrant)
    made = training(pool(kind))
    expected = usual(model, made, loss)
    assert_equal(reused(model, made, loss, scored(model, pool(kind))), expected, 1e-12)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "phi3", "gpt2", "mixtral", "bloom", "opt", "gptj"])
@pytest.mark.parametrize("left", [False, True])
def test_padding_on_either_side_in_float32(kind: str, left: bool) -> None:
    model = checkpointed(tiny_model(kind, dtype=torch.float32))
    batches = pool(kind, left=left)
    made = training(batches, left=left)
    states = scored(model, batches)
    assert states.reason is None
    expected = usual(model, made, weighted)
    assert_equal(reused(model, made, weighted, states), expected, 1e-6)
    assert states.reason is None


def test_scored_padded_on_the_left_trained_on_the_right() -> None:
    model = checkpointed(tiny_model("gpt2"))
    states = scored(model, pool("gpt2", left=True))
    made = training(pool("gpt2", left=True), left=False)
    expected = usual(model, made, weighted)
    assert_equal(reused(model, made, weighted, states), expected, 1e-12)


def test_scored_padded_trained_without_padding() -> None:
    model = checkpointed(tiny_model("llama"))
    batches = pool()
    states = scored(model, batches)
    rows = take_rows(batches, CHOSEN[0])
    ends = torch.tensor([0, *(len(row["input_ids"]) for row in rows)]).cumsum(0).tolist()
    for row in rows:
        row["labels"][0] = -100
    batch = {key: torch.cat([row[key] for row in rows])[None] for key in ("input_ids", "labels", "position_ids")}
    places = torch.tensor([[row, 0, ends[i], ends[i + 1]] for i, row in enumerate(CHOSEN[0])])
    plain(model, batch, 0).backward()
    expected = gradients(model)
    assert_equal(reused(model, [(batch, places)], plain, states), expected, 1e-12)


@pytest.mark.parametrize("lora", [False, True])
def test_in_bfloat16_autocast(lora: bool) -> None:
    model = checkpointed(tiny_model("llama", lora=lora, dtype=torch.float32))

    def loss(model: nn.Module, batch: Batch, number: int) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return weighted(model, batch, number)

    batches = pool()
    made = training(batches)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = scored(model, batches)
    expected, full = usual(model, made, loss), usual(model, made, weighted)
    found = reused(model, made, loss, states)
    assert_equal(found, expected, 2e-3)
    # Recomputed in bfloat16 as well: nearer to the autocast step than to the one in float32.
    far, near = (sum(float((found[n] - g[n]).norm()) for n in found) for g in (full, expected))
    assert near < 0.3 * far


def test_a_bfloat16_model() -> None:
    model = checkpointed(tiny_model("llama", dtype=torch.bfloat16))
    made = training(pool())
    states = scored(model, pool())
    assert_equal(reused(model, made, weighted, states), usual(model, made, weighted), 1e-2)


def test_tied_embeddings_are_trained() -> None:
    model = checkpointed(tiny_model("llama", tie_word_embeddings=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    made = training(pool())
    expected = usual(model, made, weighted)
    assert_equal(reused(model, made, weighted, scored(model, pool())), expected, 1e-12)


def test_blocks_without_anything_to_train_are_not_recomputed() -> None:
    model = checkpointed(tiny_model("llama"), reentrant=False)
    model.disable_input_require_grads()
    model.requires_grad_(False)
    blocks(model)[1].requires_grad_(True)
    made = training(pool())[:1]
    states = scored(model, pool())
    expected = usual(model, made, weighted)
    with counted(model) as ran:
        assert_equal(reused(model, made, weighted, states), expected, 1e-12)
    assert ran == [2, 1]


def test_backward_twice() -> None:
    model = checkpointed(tiny_model("llama"))
    states = scored(model, pool())
    batch, places = training(pool())[0]
    expected = usual(model, [(batch, places)], weighted)
    with states.recall(places, batch):
        loss = weighted(model, batch, 0)
    loss.backward(retain_graph=True)
    loss.backward()
    assert_equal(gradients(model), {name: 2 * g for name, g in expected.items()}, 1e-12)


def test_hooks_of_parameters_run_once() -> None:
    model = checkpointed(tiny_model("llama"))
    states = scored(model, pool())
    ran: list[str] = []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: ran.append(name))
    reused(model, training(pool())[:1], weighted, states)
    assert sorted(ran) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("find_unused", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_under_ddp(tmp_path: Any, find_unused: bool, lora: bool) -> None:
    model = checkpointed(tiny_model("llama", lora=lora), reentrant=False)
    made = training(pool())
    expected = usual(model, made, weighted)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=find_unused)
        assert unfit(wrapped) is None
        states = scored(model, pool())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
            for number, (batch, places) in enumerate(made):
                last = number == len(made) - 1
                with contextlib.nullcontext() if last else wrapped.no_sync(), states.recall(places, batch):
                    (weighted_loss(wrapped, model, batch, WEIGHTS[number].double())[0] / 7).backward()
        assert_equal(gradients(model), expected, 1e-12)
    finally:
        dist.destroy_process_group()


# ---- what runs -------------------------------------------------------------------------------------------------------


def test_no_block_runs_forward_and_each_once_backward() -> None:
    model = checkpointed(tiny_model("llama"))
    states = scored(model, pool())
    batch, places = training(pool())[0]
    with counted(model) as ran:
        with states.recall(places, batch):
            loss = weighted(model, batch, 0)
        assert ran == []
        loss.backward()
    assert ran == [2, 1, 0]


@pytest.mark.parametrize("own", [False, True])
def test_what_was_there_is_restored(own: bool) -> None:
    model = checkpointed(tiny_model("llama"))
    if not own:  # on the class alone
        function = vars(blocks(model)[0])["_gradient_checkpointing_func"]
        for block in blocks(model):
            del block._gradient_checkpointing_func
        type(blocks(model)[0])._gradient_checkpointing_func = staticmethod(function)
    try:
        before = [dict(vars(block)) for block in blocks(model)]
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        states = scored(model, pool())
        batch, places = training(pool())[0]
        with pytest.raises(ZeroDivisionError), states.recall(places, batch):
            raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError), states.keep(range(5), pool()[0]):
            raise ZeroDivisionError
        assert [dict(vars(block)) for block in blocks(model)] == before
        assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
        assert not states.has(places[:, 0].tolist())
    finally:
        if not own:
            del type(blocks(model)[0])._gradient_checkpointing_func


@pytest.mark.parametrize("scorer", [Loss(), LastLayer(num_blocks=1), LastLayer(num_blocks=9), ZerothOrder()])
def test_keeping_changes_no_score(scorer: Any) -> None:
    model = checkpointed(tiny_model("llama"))
    batch = pool()[0]
    expected = copy.deepcopy(scorer).run(model, batch)
    with BlockStates(model).keep(range(5), batch):
        found = scorer.run(model, batch)
    assert torch.equal(found.features, expected.features)
    assert torch.equal(found.losses, expected.losses)
    assert model.training
    assert gradients(model) == {}


# ---- the store -------------------------------------------------------------------------------------------------------


def state_bytes(tokens: int, itemsize: int = 8) -> int:
    return tokens * (LAYERS * HIDDEN + reuse.MARK_CHANNELS) * itemsize


def lengths(batches: Sequence[Batch]) -> list[int]:
    return [int(row) for batch in batches for row in batch["attention_mask"].sum(dim=1)]


def test_bytes_go_down_with_what_is_dropped_and_trained() -> None:
    model = checkpointed(tiny_model("llama"))
    counts = lengths(pool())
    states = scored(model, pool())
    assert states.bytes == states.peak_bytes == state_bytes(sum(counts))
    chosen = [row for rows in CHOSEN for row in rows]
    states.retain(chosen)
    assert states.has(chosen)
    assert not states.has([1])
    assert states.bytes == state_bytes(sum(counts[row] for row in chosen))
    assert states.peak_bytes <= state_bytes(sum(counts)) + sum(counts) * HIDDEN * 8
    tensors = [t for kept in states._rows.values() for t in kept.states if t is not None]
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    assert sum(held.values()) == states.bytes
    made = training(pool())
    expected = usual(model, made, weighted)
    found = reused(model, made[:1], weighted, states)
    assert states.bytes == state_bytes(sum(counts[row] for row in CHOSEN[1]))
    batch, places = made[1]
    with states.recall(places, batch):
        weighted(model, batch, 1).backward()
    rest = gradients(model)
    assert_equal({name: found[name] + rest[name] for name in found}, expected, 1e-12)
    assert states.bytes == 0
    assert not states.has([2])
    assert states.has([])


def test_memory_is_handed_on_block_by_block() -> None:
    model = checkpointed(tiny_model("llama"))
    states = scored(model, pool())
    states.retain(CHOSEN[0])
    batch, places = training(pool())[0]
    sizes = [states.bytes]
    with states.recall(places, batch):
        handles = [b.register_forward_hook(lambda *_: sizes.append(states.bytes)) for b in blocks(model)]
        weighted(model, batch, 0)
        for handle in handles:
            handle.remove()
    tokens = int(batch["attention_mask"].sum())
    assert [a - b for a, b in itertools.pairwise(sizes)] == [tokens * HIDDEN * 8] * LAYERS
    assert states.bytes == 0


def test_emptying() -> None:
    states = scored(checkpointed(tiny_model("llama")), pool())
    states.retain(())
    assert states.bytes == 0
    assert not states.has([0])


@pytest.mark.parametrize("fitting, kept", [(0, 0), (1, 5), (2, 10)])
def test_a_cap_leaves_out_whole_micro_batches(fitting: int, kept: int) -> None:
    model = checkpointed(tiny_model("llama"))
    counts = lengths(pool())
    states = scored(model, pool(), max_bytes=state_bytes(sum(counts[: 5 * fitting])))
    assert [states.has([row]) for row in range(10)] == [row < kept for row in range(10)]
    assert states.peak_bytes <= state_bytes(sum(counts[: 5 * fitting]))
    assert states.reason is None


def test_after_the_cap_nothing_more_is_kept() -> None:
    model = checkpointed(tiny_model("llama"))
    small = {key: value[:1] for key, value in pool()[0].items()}
    states = BlockStates(model, max_bytes=state_bytes(lengths([small])[0]))
    for rows, batch in ((range(5), pool()[0]), ([5], small)):
        with states.keep(rows, batch):
            Loss().run(model, batch)
    assert states.bytes == 0
    states.retain(())
    with states.keep([5], small):
        Loss().run(model, small)
    assert states.has([5])


def test_partly_kept_partly_run() -> None:
    model = checkpointed(tiny_model("llama"))
    batches, counts = pool(), lengths(pool())
    states = scored(model, batches, max_bytes=state_bytes(sum(counts[:5])))
    made = training(batches, chosen=((0, 4), (8, 6)))

    def loss(model: nn.Module, batch: Batch, number: int) -> Tensor:
        return plain(model, batch, number)

    expected = usual(model, made, loss)
    for batch, places in made:
        there = states.has(places[:, 0].tolist())
        with states.recall(places, batch) if there else contextlib.nullcontext():
            loss(model, batch, 0).backward()
    assert_equal(gradients(model), expected, 1e-12)


def test_in_host_memory() -> None:
    model = checkpointed(tiny_model("llama"))
    states = scored(model, pool(), place="host")
    states.retain([row for rows in CHOSEN for row in rows])
    made = training(pool())
    expected = usual(model, made, weighted)
    assert_equal(reused(model, made, weighted, states), expected, 1e-12)
    assert states.bytes == 0


def test_a_row_scored_again_replaces_the_first() -> None:
    model = checkpointed(tiny_model("llama"))
    batches = pool()
    states = scored(model, batches)
    size = states.bytes
    with states.keep(range(5), batches[0]):
        Loss().run(model, batches[0])
    assert states.bytes == size


# ---- nothing is kept -------------------------------------------------------------------------------------------------


def test_zeroth_order_doubles_rows() -> None:
    states = scored(checkpointed(tiny_model("llama")), pool(), ZerothOrder())
    assert states.bytes == 0
    assert not states.has([0])
    assert "[10, 12, 32]" in str(states.reason)


def test_a_forward_that_stops_early() -> None:
    model = checkpointed(tiny_model("llama"))
    batch, states = pool()[0], BlockStates(model)

    def stop(*_: Any) -> None:
        raise StopIteration

    handle = blocks(model)[1].register_forward_hook(stop)
    with states.keep(range(5), batch), scoring_mode(model), contextlib.suppress(StopIteration):
        model(**forward_inputs(batch))
    handle.remove()
    assert not states.has([0])
    assert states.bytes == 0
    with states.keep(range(5), batch), scoring_mode(model):
        model(**forward_inputs(batch))
    assert states.has(range(5))


def test_a_forward_that_skips_blocks() -> None:
    model = checkpointed(tiny_model("llama"))
    batch, states = pool()[0], BlockStates(model)
    model.config.num_hidden_layers = 2
    with states.keep(range(5), batch), scoring_mode(model):
        model(**forward_inputs(batch))
    assert states.bytes == 0
    assert not states.has([0])


@pytest.mark.parametrize("in_place", [False, True])
def test_a_model_that_changes_hidden_states_between_blocks(in_place: bool) -> None:
    model = checkpointed(tiny_model("llama"))
    states = BlockStates(model)

    def change(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output.mul_(2) if in_place else output * 2

    handle = blocks(model)[0].register_forward_hook(change)
    with states.keep(range(5), pool()[0]):
        Loss().run(model, pool()[0])
    handle.remove()
    assert not states.has([0])
    assert states.reason == "The model changes hidden states between blocks 0 and 1."


def test_positions_that_depend_on_padding() -> None:
    model = checkpointed(tiny_model("gpt2"))
    batches = pool("gpt2", left=True)
    for batch in batches:
        del batch["position_ids"]
    made = training(batches, left=True)
    states = scored(model, batches)
    expected = usual(model, made, weighted)
    assert_equal(reused(model, made, weighted, states), expected, 1e-12)  # by the usual way
    assert "depends on its padding" in str(states.reason)
    assert not states.has([1])
    states.retain(())
    with states.keep(range(5), batches[0]):
        Loss().run(model, batches[0])
    assert states.bytes == 0


def test_relative_positions_may_move() -> None:
    model = checkpointed(tiny_model("llama"))
    batches = pool("llama", left=True)
    for batch in batches:
        del batch["position_ids"]
    made = training(batches, left=True)
    states = scored(model, batches)
    expected = usual(model, made, weighted)
    assert_equal(reused(model, made, weighted, states), expected, 1e-6)  # angles are computed in float32
    assert states.reason is None


def test_a_trained_input_besides_hidden_states_runs_the_usual_way() -> None:
    model = checkpointed(tiny_model("llama"), reentrant=False)
    extra = nn.Parameter(torch.ones((), dtype=torch.float64))
    model.model.rotary_emb.register_forward_hook(lambda _, args, output: tuple(part * extra for part in output))
    made = training(pool())[:1]
    expected = usual(model, made, weighted)
    angle, extra.grad = extra.grad, None
    assert_equal(reused(model, made, weighted, scored(model, pool())), expected, 1e-12)
    assert extra.grad is not None
    assert torch.allclose(extra.grad, angle)


def test_a_trained_tensor_outside_of_its_block() -> None:
    model = checkpointed(tiny_model("llama"), reentrant=False)
    extra = nn.Parameter(torch.ones((), dtype=torch.float64))
    blocks(model)[1].mlp.register_forward_hook(lambda _, args, output: output * extra)
    states = scored(model, pool())
    batch, places = training(pool())[0]
    with states.recall(places, batch):
        loss = weighted(model, batch, 0)
    with pytest.raises(UnsupportedModelError, match="Block 1 uses a trained tensor"):
        loss.backward()


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_wrong_places() -> None:
    model = checkpointed(tiny_model("llama"))
    states = scored(model, pool())
    batch, places = training(pool())[0]
    for column, value, message in (
        (0, 77, "Row 77 of the pool is not kept"),
        (1, 3, "Found row 3"),
        (2, 1, "tokens"),
        (3, 99, "tokens"),
    ):
        wrong = places.clone()
        wrong[0, column] = value
        with pytest.raises(InputError, match=message), states.recall(wrong, batch):
            pass
    assert states.has(CHOSEN[0])  # an error takes no rows


def test_weights_that_changed() -> None:
    model = checkpointed(tiny_model("llama"))
    states = scored(model, pool())
    batch, places = training(pool())[0]
    weighted(model, batch, 0).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    with pytest.raises(InputError, match="weights have changed"), states.recall(places, batch):
        pass


def test_one_recall_serves_one_forward() -> None:
    model = checkpointed(tiny_model("llama"))
    states = scored(model, pool())
    states.retain(range(10))
    batch, places = training(pool())[0]
    with states.recall(places, batch):
        weighted(model, batch, 0)
        with pytest.raises(InputError, match="recalled already"):
            weighted(model, batch, 0)


def test_wrong_settings() -> None:
    model = checkpointed(tiny_model("llama"))
    with pytest.raises(ConfigError, match="'disk'"):
        BlockStates(model, place="disk")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="-1"):
        BlockStates(model, max_bytes=-1)
    with pytest.raises(UnsupportedModelError, match="checkpointing is off"):
        BlockStates(tiny_model("llama"))
    with pytest.raises(InputError, match="each of the 5 rows"), BlockStates(model).keep(range(4), pool()[0]):
        pass


# ---- which models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*FUSED, "llama", "opt", "phi"])
def test_dropout_is_refused(kind: str) -> None:
    if not ARCHITECTURES[kind].dropout:
        pytest.skip("has none")
    for key in ARCHITECTURES[kind].dropout:
        assert "ropout" in str(unfit(checkpointed(tiny_model(kind, **dict[str, Any]({key: 0.1}))))), key


def test_dropout_of_adapters_is_refused() -> None:
    assert "lora_dropout" in str(unfit(checkpointed(adapted(tiny_model("llama"), "llama", dropout=0.1))))


def test_noise_is_refused() -> None:
    assert "layerdrop" in str(unfit(checkpointed(tiny_model("opt", layerdrop=0.1))))
    assert "jitter_noise" in str(unfit(checkpointed(tiny_model("mixtral", router_jitter_noise=0.1))))
    model = checkpointed(tiny_model("llama"))
    model.get_input_embeddings().neftune_noise_alpha = 5.0
    assert "NEFTune" in str(unfit(model))


def test_models_without_checkpointing_are_refused() -> None:
    assert unfit(nn.Linear(2, 2)) == "The model has no GradientCheckpointingLayer blocks."
    assert unfit(tiny_model("llama")) == "Activation checkpointing is off in 3 of 3 blocks."
    model = checkpointed(tiny_model("llama"))
    blocks(model)[1].gradient_checkpointing = False
    assert unfit(model) == "Activation checkpointing is off in 1 of 3 blocks."
    model = checkpointed(tiny_model("llama"))
    model.model.layers[2] = model.model.layers[1]
    assert "one list of distinct blocks" in str(unfit(model))


def test_compiled_models_are_refused() -> None:
    model = checkpointed(tiny_model("llama"))
    assert unfit(cast(nn.Module, torch.compile(model, backend="eager"))) == "The model is compiled with torch.compile."
    model.model.layers[0].compile(backend="eager")
    assert unfit(model) == "The model is compiled with torch.compile."


def test_sharded_models_are_refused() -> None:
    model = checkpointed(tiny_model("llama"))
    next(model.parameters()).ds_id = 0
    assert "ZeRO-3" in str(unfit(model))
    assert "DataParallel" in str(unfit(nn.DataParallel(checkpointed(tiny_model("llama")))))


@pytest.mark.parametrize(
    "kind, settings, reason",
    [
        ("mixtral", {"output_router_logits": True}, "output_router_logits"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
    ],
)
def test_models_whose_blocks_depend_on_more_than_a_row(kind: str, settings: dict[str, Any], reason: str) -> None:
    model = tiny_model(kind, **settings)
    assert reason in str(unfit(checkpointed(model)))


def test_hybrid_models_are_refused() -> None:
    from transformers import JambaConfig, JambaForCausalLM

    model = JambaForCausalLM(
        JambaConfig(
            **TOKENS, vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, num_experts=2, attn_layer_period=2, attn_layer_offset=1, mamba_d_state=2,
            use_mamba_kernels=False,
        )
    )  # fmt: skip
    assert "recurrent" in str(unfit(checkpointed(model)))


def test_prompt_learning_keeps_nothing() -> None:
    from peft import PromptTuningConfig, get_peft_model

    base = checkpointed(tiny_model("llama"))
    model = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert unfit(model) == "Prompt learning lengthens the rows."
    states, batch = BlockStates(model), tiny_batch()
    with states.keep(range(5), batch), scoring_mode(model):
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        model(**inputs)
    assert states.bytes == 0
    assert "changes rows or tokens" in str(states.reason)
