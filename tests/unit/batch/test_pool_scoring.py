"""Which rows are scored, in which forwards, and that what is chosen by them estimates the pool without bias."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from corebatch.batch.plan import Plan
from corebatch.batch.pool import Pool, gather_pool
from corebatch.batch.scoring import Scoring
from corebatch.batch.strategies.window import window
from corebatch.distributed.ranks import Ranks
from corebatch.errors import ConfigError, NonFiniteError, UnsupportedModelError
from corebatch.model.early_exit import EarlyExit
from corebatch.model.rows import Padding, check_pool, put_together, row_spans, take_rows
from corebatch.scoring import SCORERS, Scores
from corebatch.trainer import CoresetConfig
from corebatch.types import ID, SOURCE
from models import ARCHITECTURES, batch_for, tiny_batch, tiny_model

ALONE = Ranks()
NO_PADDING = Padding(token=0)
KIND = "phi"  # its norms compute in the model's dtype, so that float64 is float64 all the way

Batch = dict[str, Tensor]


def made(config: CoresetConfig, **settings: Any) -> Scoring:
    return Scoring(config.resolve_scoring(False), config.build(), loss=config.loss, **{"micro_batch": 4, **settings})


def drawn(*, left: bool = False, seed: int = 0) -> list[Batch]:
    """Two batches of 7 rows, as the loader gives them; ids are not in order."""
    batches = [tiny_batch(7, 12, left=left, pad=1, seed=seed), tiny_batch(7, 9, left=left, seed=seed + 1)]
    ids = torch.randperm(14, generator=torch.Generator().manual_seed(seed))
    for batch, part in zip(batches, ids.split(7), strict=True):
        batch |= {ID: part, SOURCE: part % 2}
        check_pool(batch)
    return batches


def pool_of(batches: list[Batch]) -> Pool:
    spans = torch.cat([row_spans(batch) for batch in batches])
    columns = {
        "ids": torch.cat([batch[ID] for batch in batches]),
        "sources": torch.cat([batch[SOURCE] for batch in batches]),
        "lengths": spans[:, 1] - spans[:, 0],
        "tokens": torch.cat([(batch["labels"][:, 1:] != -100).sum(dim=1) for batch in batches]),
        "eligible": torch.ones(len(spans), dtype=torch.bool),
        "batches": torch.zeros(len(spans), dtype=torch.long),
        "widths": spans[:, 1] - spans[:, 0],
    }
    return gather_pool(ALONE, columns, [len(columns["ids"])])


def scored(scoring: Scoring, model: Any, batches: list[Batch], padding: Padding = NO_PADDING) -> Scores:
    pool = pool_of(batches)
    found = scoring.forwards.score(ALONE, model, batches, pool, scoring.plan(pool, 7, 0).exact, padding)
    assert found is not None
    return found


def row_by_row(name: str, model: Any, batches: list[Batch], config: CoresetConfig) -> Scores:
    """The slow twin: one forward for each row, in the order of ids."""
    scorer = SCORERS[name]()
    parts = []
    for number in pool_of(batches).rows.tolist():
        row = {k: v for k, v in take_rows(batches, [number])[0].items() if k not in (ID, SOURCE)}
        parts.append(scorer.run(model, put_together([row], NO_PADDING), loss=config.loss, seed=config.seed))
    return Scores.cat(parts)


def assert_near(found: Scores, expected: Scores, bound: float = 1e-12) -> None:
    assert found.features.shape == expected.features.shape
    assert float((found.features - expected.features).norm() / expected.features.norm()) < bound
    if expected.losses is not None:
        assert found.losses is not None
        torch.testing.assert_close(found.losses, expected.losses, rtol=bound, atol=bound)
    assert found.tokens.tolist() == expected.tokens.tolist()


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(rows, width) of every forward of `last_layer`."""
    seen: list[tuple[int, int]] = []
    run = SCORERS["last_layer"].run

    def watched(self: Any, model: Any, batch: Mapping[str, Tensor], **settings: Any) -> Scores:
        seen.append(tuple(batch["input_ids"].shape))  # type: ignore[arg-type]
        return run(self, model, batch, **settings)

    monkeypatch.setattr(SCORERS["last_layer"], "run", watched)
    return seen


# ---- forwards --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SCORERS if SCORERS[name].needs_forward])
@pytest.mark.parametrize("rows", ["auto", 1, 3, 100])
def test_sorted_and_cut_is_row_by_row(name: str, rows: Any) -> None:
    config = CoresetConfig(scorer=name, scoring={"way": "full", "rows": rows}, selector="importance")
    model, batches = tiny_model(KIND), drawn()
    bound = 1e-7 if name == "zeroth_order" else 1e-12  # a difference of losses divided by 2e-3
    assert_near(scored(made(config), model, batches), row_by_row(name, model, batches, config), bound)


@pytest.mark.parametrize("padding", [Padding(token=0, left=True), Padding(token=0, multiple_of=8)], ids=str)
@pytest.mark.parametrize("loss", ["token_mean", "example_mean"])
def test_padding_and_units_make_no_difference(padding: Padding, loss: Any) -> None:
    config = CoresetConfig(loss=loss, scoring="full")
    model, batches = tiny_model(KIND), drawn(left=padding.left)
    found = scored(made(config), model, batches, padding)
    assert_near(found, row_by_row("last_layer", model, batches, config))


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 14])
@pytest.mark.parametrize("multiple", [1, 8])
def test_no_forward_is_larger_than_asked_for(shapes: list[tuple[int, int]], rows: int, multiple: int) -> None:
    scoring = made(CoresetConfig(scoring={"way": "full", "rows": rows}))
    batches = drawn()
    scored(scoring, tiny_model(KIND), batches, Padding(token=0, multiple_of=multiple))
    longest = -(-int(pool_of(batches).lengths.max()) // multiple) * multiple
    assert sum(height for height, _ in shapes) == 14
    assert all(height * width <= rows * longest for height, width in shapes)
    widths = [width for _, width in shapes]
    assert widths == sorted(widths, reverse=True), "longest first, so that memory is short at once or never"
    assert len(shapes) <= -(-14 // rows)
    assert scoring.forwards.work.forwards == len(shapes)
    assert scoring.forwards.work.positions == sum(height * width for height, width in shapes)
    assert scoring.forwards.work.tokens == int(pool_of(batches).lengths.sum())


def test_auto_is_a_micro_batch_of_the_first_pool(shapes: list[tuple[int, int]]) -> None:
    scoring = made(CoresetConfig(scoring="full"), micro_batch=4)
    scored(scoring, tiny_model(KIND), drawn())
    assert scoring.forwards.positions == 4 * 12
    assert all(height * width <= 4 * 12 for height, width in shapes)
    again = made(CoresetConfig(scoring="full"), micro_batch=9)
    again.load_state_dict(scoring.state_dict())
    assert again.forwards.positions == 4 * 12, "a resumed run cuts as before"


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Memory runs out above 20 positions; the positions of each attempt."""
    attempts: list[int] = []
    run = SCORERS["last_layer"].run

    def limited(self: Any, model: Any, batch: Mapping[str, Tensor], **settings: Any) -> Scores:
        attempts.append(batch["input_ids"].numel())
        if attempts[-1] > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return run(self, model, batch, **settings)

    monkeypatch.setattr(SCORERS["last_layer"], "run", limited)
    return attempts


@pytest.mark.parametrize("rows", ["auto", 6])
def test_forwards_are_halved_when_memory_runs_out(
    small_memory: list[int], rows: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = CoresetConfig(scoring={"way": "full", "rows": rows})
    model, batches = tiny_model(KIND), drawn()
    scoring = made(config, micro_batch=6)
    with caplog.at_level(logging.WARNING):
        found = scored(scoring, model, batches)
    assert max(small_memory) > 20
    assert "Memory ran out while scoring 6 rows in one forward; going on with 3" in caplog.text
    assert scoring.forwards.work.forwards == sum(size <= 20 for size in small_memory)
    assert not torch.cuda.is_initialized()
    small_memory.clear()
    scored(scoring, model, batches)
    assert max(small_memory) <= 20, "the next step does not try again"
    monkeypatch.undo()
    assert_near(found, row_by_row("last_layer", model, batches, config))


def test_a_single_row_that_does_not_fit_is_an_error(small_memory: list[int]) -> None:
    batch = tiny_batch(1, 24) | {ID: torch.tensor([0]), SOURCE: torch.tensor([0])}
    with pytest.raises(torch.OutOfMemoryError):
        scored(made(CoresetConfig(scoring="full")), tiny_model(KIND), [batch])


def test_on_a_sharded_engine_no_rank_tries_again_by_itself(small_memory: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"set coreset\.scoring\.rows below 6"):
        scored(made(CoresetConfig(scoring="full"), micro_batch=6, sharded=True), tiny_model(KIND), drawn())


# ---- windows ---------------------------------------------------------------------------------------------------------


def row(length: int, first: int, last: int | None = None) -> Batch:
    """A row whose labels `first` to `last` are trained; one key by row."""
    ids = torch.arange(length)
    labels = torch.where((ids >= first) & (ids < (length if last is None else last)), ids, -100)
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones(length), "kind": torch.tensor(3)}


@pytest.mark.parametrize(
    "length, first, tokens, expected",
    [
        (20, 10, 8, (8, 16)),  # a quarter before the first trained token
        (20, 0, 8, (0, 8)),
        (20, 1, 8, (0, 8)),
        (20, 18, 8, (12, 20)),  # the row's end
        (20, 20, 8, (0, 8)),  # nothing is trained
        (8, 3, 8, (0, 8)),
        (5, 3, 8, (0, 5)),
        (20, 10, 2, (9, 11)),  # the first trained token has one before it that predicts it
        (20, 10, 3, (9, 12)),
        (20, 19, 2, (18, 20)),
    ],
)
def test_where_a_window_lies(length: int, first: int, tokens: int, expected: tuple[int, int]) -> None:
    whole = row(length, first)
    found = window(whole, tokens)
    assert found["input_ids"].tolist() == list(range(*expected))
    for key in ("labels", "attention_mask"):
        assert torch.equal(found[key], whole[key][slice(*expected)])
    assert found["kind"] == 3
    trained = int((found["labels"][1:] != -100).sum())
    assert trained > 0 or first >= length


@pytest.mark.parametrize("loss", ["token_mean", "example_mean"])
def test_features_of_windows(loss: Any, shapes: list[tuple[int, int]]) -> None:
    config = CoresetConfig(scoring={"way": "window", "tokens": 6}, loss=loss)
    model, batches = tiny_model(KIND), drawn()
    pool = pool_of(batches)
    found = scored(made(config), model, batches)
    assert max(width for _, width in shapes) == 6
    assert found.losses is None, "a window's loss is not the example's"
    assert torch.equal(found.tokens, pool.tokens)
    for position, number in enumerate(pool.rows.tolist()):
        cut = window({k: v for k, v in take_rows(batches, [number])[0].items() if k not in (ID, SOURCE)}, 6)
        alone = SCORERS["last_layer"]().run(model, put_together([cut], NO_PADDING), loss=loss, seed=0)
        scale = (pool.tokens[position] / alone.tokens.clamp(min=1)).sqrt() if loss == "token_mean" else 1
        torch.testing.assert_close(found.features[position], alone.features[0] * scale, rtol=1e-7, atol=1e-9)


def test_a_window_that_holds_everything_is_full_scoring() -> None:
    model, batches = tiny_model(KIND), drawn()
    found, full = (
        scored(made(CoresetConfig(scoring=way)), model, batches) for way in ({"way": "window", "tokens": 64}, "full")
    )
    assert torch.equal(found.features, full.features)


# ---- early exit ------------------------------------------------------------------------------------------------------

LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers")
EXITS = ("llama", "gpt2", "phi", "qwen3", "gemma3", "gptneox", "falcon", "bloom", "mpt", "opt", "gptj")


@pytest.mark.parametrize("kind", EXITS)
@pytest.mark.parametrize("count", [1, 2])
def test_first_blocks_are_a_shorter_model(kind: str, count: int) -> None:
    key = next(key for key in LAYER_KEYS if key in ARCHITECTURES[kind].settings)
    settings = {"dtype": torch.float32} if kind == "mpt" else {}
    model, short = tiny_model(kind, **settings), tiny_model(kind, **{key: count}, **settings)
    short.load_state_dict({k: v for k, v in model.state_dict().items() if k in short.state_dict()})
    batch = batch_for(kind)
    expected = SCORERS["last_layer"](num_blocks=2).run(short, batch)
    with EarlyExit(count).cut(model, batch):
        found = SCORERS["last_layer"](num_blocks=2).run(model, batch)
    assert_near(found, expected, 1e-12 if model.dtype == torch.float64 else 1e-6)
    whole = SCORERS["last_layer"](num_blocks=2).run(model, batch)
    assert whole.features.shape != found.features.shape or not torch.allclose(whole.features, found.features)


def test_first_blocks_through_the_pool() -> None:
    config = CoresetConfig(scoring={"way": "first_blocks", "blocks": 1})
    model, batches = tiny_model(KIND), drawn()
    found = scored(made(config), model, batches)
    assert found.losses is None, "an early exit's loss is not the model's"
    with EarlyExit(1).cut(model, batches[0]):
        expected = row_by_row("last_layer", model, batches, config)
    assert_near(found, Scores(features=expected.features, losses=None, tokens=expected.tokens))


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails: bool) -> None:
    model, batch = tiny_model("llama", lora=True), tiny_batch()
    model.train()
    before = [set(vars(module)) for module in model.modules()]
    expected = model(**batch).loss
    early = EarlyExit(1)
    for _ in range(2):
        try:
            with early.cut(model, batch):
                assert "forward" in vars(model.get_base_model().model.layers[1])
                if fails:
                    raise KeyError
        except KeyError:
            assert fails
    assert [set(vars(module)) for module in model.modules()] == before
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model(**batch).loss, expected)


def test_too_many_blocks_are_refused() -> None:
    early = EarlyExit(3)
    message = r"below the number of blocks of the model, 3\. Found 3"
    with pytest.raises(ConfigError, match=message), early.cut(tiny_model(), tiny_batch()):
        pass


def test_blocks_that_somebody_else_has_replaced_are_refused() -> None:
    model = tiny_model()
    block = model.model.layers[2]
    block.forward = block.forward
    with pytest.raises(UnsupportedModelError, match="replaced"), EarlyExit(1).cut(model, tiny_batch()):
        pass


# ---- which rows are scored -------------------------------------------------------------------------------------------

N, M = 24, 6
GENERATOR = torch.Generator().manual_seed(5)
TOKENS = torch.randint(1, 40, (N,), generator=GENERATOR)
FEATURES = torch.randn(N, 5, generator=GENERATOR) * (TOKENS.sqrt() * torch.rand(N, generator=GENERATOR)).unsqueeze(1)
LOSSES = TOKENS * (0.5 + torch.rand(N, generator=GENERATOR))
ANY = FEATURES[:, 0] * 3 + torch.randn(N, generator=GENERATOR) + 2
VALUES = torch.stack([ANY, FEATURES.norm(dim=1), TOKENS.sqrt()], dim=1).double()
"""Of which means are estimated; the nearer values come to what steers inclusion, the smaller a bias shows."""


def plain_pool(eligible: Tensor | None = None) -> Pool:
    ids = torch.arange(N) * 3 + 1
    return Pool(
        ids=ids, sources=ids % 2, lengths=TOKENS + 2, tokens=TOKENS, ranks=torch.zeros_like(ids),
        rows=torch.arange(N), batches=torch.zeros_like(ids), widths=TOKENS + 2,
        eligible=torch.ones(N, dtype=torch.bool) if eligible is None else eligible,
    )  # fmt: skip


def plain_scores(rows: Tensor) -> Scores:
    return Scores(features=FEATURES[rows], losses=LOSSES[rows], tokens=TOKENS[rows])


def knowing(config: CoresetConfig, rows: Tensor, *, step: int = 0) -> Scoring:
    """With a memory of the pool's `rows`."""
    scoring = made(config)
    if scoring.memory is not None:
        plan = Plan(candidates=torch.arange(N), budget=M, exact=rows)
        scoring.remember(plain_pool(), plan, plain_scores(rows), step)
    return scoring


HALF, ALL, NONE = torch.arange(0, N, 2), torch.arange(N), torch.arange(0)


@pytest.mark.parametrize("way", ["full", "window", "first_blocks"])
def test_ways_that_score_everything(way: str) -> None:
    eligible = torch.ones(N, dtype=torch.bool)
    eligible[[3, 8]] = False
    plan = made(CoresetConfig(scoring=way)).plan(plain_pool(eligible), M, 3)
    assert plan.exact.tolist() == plan.candidates.tolist() == eligible.nonzero().flatten().tolist()


def test_every_scores_at_every_so_many_steps() -> None:
    scoring = knowing(CoresetConfig(scoring={"way": "every", "steps": 3}), HALF)
    scored_at = [len(scoring.plan(plain_pool(), M, step).exact) for step in range(7)]
    assert scored_at == [N, 0, 0, N, 0, 0, N]
    recalled = scoring.plan(plain_pool(), M, 1).recalled
    assert recalled is not None
    assert recalled.known.nonzero().flatten().tolist() == HALF.tolist()


@pytest.mark.parametrize("unknown", ["guess", "score"])
def test_remembered_scores_what_it_does_not_know_if_asked_to(unknown: Any) -> None:
    scoring = knowing(CoresetConfig(scoring={"way": "remembered", "unknown": unknown, "max_age": 2}), HALF, step=4)
    pool = plain_pool()
    others = [] if unknown == "guess" else [i for i in range(N) if i % 2]
    assert scoring.plan(pool, M, 6).exact.tolist() == others
    assert scoring.plan(pool, M, 7).exact.tolist() == ([] if unknown == "guess" else list(range(N)))


@pytest.mark.parametrize(
    "pool_factor, share, budget, expected", [(4, None, 6, 15), (4, 0.5, 6, 12), (4, 0.26, 6, 7), (4, 1.0, 6, 24),
                                             (2, None, 12, 18), (4, 0.3, 20, 20), (2, None, 24, 24)],
)  # fmt: skip
def test_two_phases_score_a_share(pool_factor: int, share: float | None, budget: int, expected: int) -> None:
    config = CoresetConfig(scoring={"way": "two_phase", "share": share}, pool_factor=pool_factor)
    plan = made(config).plan(plain_pool(), budget, 3)
    assert len(plan.exact) == expected == len(set(plan.exact.tolist()))
    assert plan.exact.tolist() == sorted(plan.exact.tolist())
    if expected < N:
        assert plan.inclusion is not None
        assert plan.inclusion.shape == (expected,)
        others = made(config).plan(plain_pool(), budget, 4)
        assert others.exact.tolist() != plan.exact.tolist()


def test_none_scores_nothing() -> None:
    plan = made(CoresetConfig(scoring="none")).plan(plain_pool(), M, 0)
    assert len(plan.exact) == 0
    assert plan.recalled is not None
    torch.testing.assert_close(plan.recalled.sizes, TOKENS.double().sqrt())


@pytest.mark.parametrize("way", ["none", "remembered", "two_phase", "every"])
def test_lengths_do_not_matter_for_a_mean_over_examples(way: str) -> None:
    config = CoresetConfig(scoring=way, loss="example_mean", selector="importance")
    scoring = made(config)
    plan = scoring.plan(plain_pool(), M, 1)
    if way == "two_phase":
        assert plan.inclusion is not None
        torch.testing.assert_close(plan.inclusion, torch.full((15,), 15 / 24, dtype=torch.float64))
        return
    assert plan.recalled is not None
    assert plan.recalled.sizes.tolist() == [1.0] * N
    assert scoring.choose(plain_pool(), plan, None, 1, None).selection.weights.tolist() == [1.0] * M


def test_selectors_and_scorers_without_a_forward_need_no_way() -> None:
    batches = drawn()
    for config in (CoresetConfig(selector="random"), CoresetConfig(scorer="tokens", selector="importance")):
        scoring = made(config)
        assert scoring.way == "none"
        assert len(scored(scoring, None, batches).features) == 14


def test_the_remembered_and_the_guessed_both_get_rows() -> None:
    """What is known is a hundred times larger than what is guessed, or smaller: neither part is left without a row."""
    for scale in (1e-2, 1.0, 1e2):
        scoring = knowing(CoresetConfig(scoring="remembered"), HALF)
        assert scoring.memory is not None
        scoring.memory._lengths *= scale
        for step in range(1, 20):
            plan = scoring.plan(plain_pool(), M, step)
            chosen = scoring.choose(plain_pool(), plan, None, step, None).selection.indices
            assert 1 <= int((chosen % 2).sum()) <= M - 1


def test_what_was_scored_and_is_not_finite_stops_the_run() -> None:
    scoring = made(CoresetConfig(scoring={"way": "remembered", "unknown": "score"}))
    plan = scoring.plan(plain_pool(), M, 0)
    features = FEATURES.clone()
    features[3, 1] = torch.nan
    with pytest.raises(NonFiniteError):
        scoring.remember(plain_pool(), plan, Scores(features=features, losses=LOSSES, tokens=TOKENS), 0)
    assert scoring.memory is not None
    assert len(scoring.memory) == 0


# ---- no way is biased ------------------------------------------------------------------------------------------------

WAYS: dict[str, tuple[Any, Tensor]] = {
    "full": ("full", NONE),
    "window": ("window", NONE),
    "every, scored": ({"way": "every", "steps": 1}, HALF),
    "every, between": ({"way": "every", "steps": 10**6}, HALF),
    "remembered": ("remembered", HALF),
    "remembered, most": ("remembered", torch.arange(N - 1)),
    "remembered, few": ("remembered", torch.arange(1)),
    "remembered, all": ("remembered", ALL),
    "remembered, nothing": ("remembered", NONE),
    "remembered, others scored": ({"way": "remembered", "unknown": "score"}, HALF),
    "two phases": ("two_phase", NONE),
    "two phases by norm": ({"way": "two_phase", "proxy": "norm"}, HALF),
    "two phases by loss": ({"way": "two_phase", "proxy": "loss"}, HALF),
    "two phases, small share": ({"way": "two_phase", "share": 0.3}, NONE),
    "none": ("none", NONE),
}


def estimates(scoring: Scoring, budget: int, draws: int) -> Iterator[Tensor]:
    """(1/M) sum of w_i x_i over the chosen rows, at many steps of one state of the memory."""
    pool = plain_pool()
    state = scoring.memory.state_dict() if scoring.memory is not None else {}
    for step in range(1, draws + 1):
        if scoring.memory is not None:
            scoring.memory.load_state_dict(state)
        plan = scoring.plan(pool, budget, step)
        scores = plain_scores(plan.exact) if len(plan.exact) else None
        scoring.remember(pool, plan, scores, step)
        selection = scoring.choose(pool, plan, scores, step, None).selection
        assert len(selection) == budget
        yield selection.weights.double() @ VALUES[selection.indices] / budget


def assert_unbiased(scoring: Scoring, budget: int, draws: int) -> None:
    """Within four standard errors, and the rounding of weights in float32."""
    found = torch.stack(list(estimates(scoring, budget, draws)))
    bias = (found.mean(dim=0) - VALUES.mean(dim=0)).abs()
    assert bool((bias <= 4 * found.std(dim=0) / draws**0.5 + 1e-6).all()), bias


LIKE_ANOTHER = ("window", "every, scored", "every, between")
"""Those that choose as `full` and `remembered` do, call for call."""


@pytest.mark.parametrize(
    "way, budget",
    [(way, budget) for way in WAYS for budget in ((M,) if way in LIKE_ANOTHER else (1, 2, M, N - 1))],
)
def test_the_weighted_sum_estimates_the_pools_mean(way: str, budget: int) -> None:
    settings, known = WAYS[way]
    config = CoresetConfig(scoring=settings, selector="importance", pool_factor=4)
    assert_unbiased(knowing(config, known), budget, 900)


@pytest.mark.parametrize("selector", ["cube", "pivotal"])
@pytest.mark.parametrize("way", ["full", "remembered", "two phases", "two phases by norm"])
def test_other_unbiased_selectors_stay_unbiased(way: str, selector: str) -> None:
    settings, known = WAYS[way]
    config = CoresetConfig(scoring=settings, selector=selector, pool_factor=4)
    assert_unbiased(knowing(config, known), M, 400)


def test_budget_of_all_takes_all_with_weight_one() -> None:
    for settings, known in WAYS.values():
        scoring = knowing(CoresetConfig(scoring=settings, pool_factor=4), known)
        plan = scoring.plan(plain_pool(), N, 1)
        scores = plain_scores(plan.exact) if len(plan.exact) else None
        scoring.remember(plain_pool(), plan, scores, 1)
        selection = scoring.choose(plain_pool(), plan, scores, 1, None).selection
        assert selection.indices.tolist() == list(range(N))
        assert selection.weights.tolist() == [1.0] * N
