"""Held-out loss against a slow twin: one row and one token at a time, from the model's whole logits."""

from collections import defaultdict
from itertools import chain
from statistics import fmean
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from corebatch.errors import DataError, InputError, NonFiniteError, UnsupportedModelError
from corebatch.evaluation import heldout_loss

SOURCES = [["a", "b", "a", "c"], ["b", "b", "a", "a"]]


def make_batches(model: Any) -> list[dict[str, Any]]:
    """Two batches of four rows, padded on the right; unscored prompts of various lengths."""
    generator = torch.Generator().manual_seed(3)
    batches = []
    for sources in SOURCES:
        ids = torch.randint(3, model.config.vocab_size, (4, 11), generator=generator)
        labels, mask = ids.clone(), torch.ones_like(ids)
        for row, (prompt, end) in enumerate([(3, 11), (5, 7), (0, 9), (8, 11)]):
            labels[row, :prompt] = -100
            labels[row, end:] = -100
            mask[row, end:] = 0
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels, "source": sources})
    return batches


def slow_loss(model: Any, batches: list[dict[str, Any]]) -> dict[str, list[list[float]]]:
    """Token losses by source and example."""
    found = defaultdict(list)
    model.eval()
    for batch in batches:
        for row, source in enumerate(batch["source"]):
            length = int(batch["attention_mask"][row].sum())
            with torch.no_grad():
                logits = model(input_ids=batch["input_ids"][row : row + 1, :length]).logits[0]
            labels = batch["labels"][row].tolist()
            losses = [
                -torch.log_softmax(logits[t - 1].double(), 0)[labels[t]].item()
                for t in range(1, length)
                if labels[t] != -100
            ]
            found[source].append(losses)
    return found


@pytest.mark.parametrize("chunk_tokens", [1, 2, 5, 9, 1000])
def test_equals_the_slow_twin(model: Any, chunk_tokens: int) -> None:
    batches = make_batches(model)
    expected = slow_loss(model, batches)
    found = heldout_loss(model, batches, chunk_tokens=chunk_tokens)
    examples = [losses for rows in expected.values() for losses in rows]
    assert found.token_mean == pytest.approx(fmean(chain(*examples)), abs=1e-10)
    assert found.example_mean == pytest.approx(fmean(map(fmean, examples)), abs=1e-10)
    for source, rows in expected.items():
        assert found.sources[source].token_mean == pytest.approx(fmean(chain(*rows)), abs=1e-10)
        assert found.sources[source].example_mean == pytest.approx(fmean(map(fmean, rows)), abs=1e-10)
        assert found.sources[source].tokens == sum(map(len, rows))
        assert found.sources[source].examples == len(rows)
    assert found.source_mean == pytest.approx(fmean(fmean(chain(*rows)) for rows in expected.values()), abs=1e-10)
    assert found.to_dict()["overall"]["tokens"] == sum(map(len, examples))


def by_rows(batches: list[dict[str, Any]], order: list[int], size: int) -> list[dict[str, Any]]:
    """The rows of these batches in another order, batches of `size`, no wider than their longest row."""
    keys = ("input_ids", "attention_mask", "labels")
    rows = {key: torch.cat([batch[key] for batch in batches]) for key in keys}
    sources = [source for batch in batches for source in batch["source"]]
    made = []
    for start in range(0, len(order), size):
        part = order[start : start + size]
        width = int(rows["attention_mask"][part].sum(dim=1).max())
        batch: dict[str, Any] = {key: rows[key][part, :width] for key in keys}
        made.append(batch | {"source": [sources[row] for row in part]})
    return made


def test_which_rows_meet_in_a_batch_does_not_matter(model: Any) -> None:
    """So that rows may be batched by length: as they come, by length, and shuffled, in batches of several sizes."""
    batches = make_batches(model)
    lengths = torch.cat([batch["attention_mask"].sum(dim=1) for batch in batches])
    expected = heldout_loss(model, batches).to_dict()
    for order in (lengths.argsort(stable=True).tolist(), torch.randperm(8).tolist()):
        for size in (1, 3, 8):
            found = heldout_loss(model, by_rows(batches, order, size)).to_dict()
            assert found["source_mean"] == pytest.approx(expected["source_mean"], abs=1e-12)
            assert found["overall"] == pytest.approx(expected["overall"], abs=1e-12)
            for source, means in expected["sources"].items():
                assert found["sources"][source] == pytest.approx(means, abs=1e-12)


@pytest.mark.parametrize("chunk_tokens", [3, 8, 1000])
def test_the_head_never_sees_more_than_a_chunk(model: Any, chunk_tokens: int) -> None:
    widths = []
    model.lm_head.register_forward_hook(lambda _, __, out: widths.append(out.shape[:-1].numel()))
    labels = heldout_loss(model, make_batches(model), chunk_tokens=chunk_tokens).overall.tokens
    assert max(widths) <= chunk_tokens
    assert sum(widths) == labels


def test_what_follows_the_head_is_kept(model: Any) -> None:
    """A model that rescales its logits (here by a hook on the whole head) has the loss of the rescaled ones."""
    model.lm_head.register_forward_hook(lambda _, __, out: 4 * torch.tanh(out / 4))
    batches = make_batches(model)
    examples = [losses for rows in slow_loss(model, batches).values() for losses in rows]
    assert heldout_loss(model, batches).token_mean == pytest.approx(fmean(chain(*examples)), abs=1e-10)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # raised inside peft
def test_peft_model_and_integer_sources(model: Any) -> None:
    batches = make_batches(model)
    expected = heldout_loss(model, batches)
    names = ["a", "b", "c"]
    numbered = [{**batch, "source": torch.tensor([names.index(s) for s in batch["source"]])} for batch in batches]
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM"))
    found = heldout_loss(adapted, numbered, source_names=names)
    for name in names:
        assert found.sources[name].token_mean == pytest.approx(expected.sources[name].token_mean, abs=1e-10)
    assert set(heldout_loss(adapted, numbered).sources) == {"0", "1", "2"}


def test_model_is_left_as_it_was(model: Any) -> None:
    model.train()
    before = torch.get_rng_state()
    heldout_loss(model, make_batches(model))
    assert model.training
    assert not model.lm_head._forward_pre_hooks
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_rows_without_labels_are_counted(model: Any) -> None:
    batches = make_batches(model)
    batches[0]["labels"][3] = -100
    found = heldout_loss(model, batches)
    assert (found.skipped, found.overall.examples, set(found.sources)) == (1, 7, {"a", "b"})
    for batch in batches:
        batch["labels"][:] = -100
    with pytest.raises(DataError, match="8 rows without"):
        heldout_loss(model, batches)


def test_no_source_column_is_one_source(model: Any) -> None:
    batches = [{k: v for k, v in batch.items() if k != "source"} for batch in make_batches(model)]
    assert set(heldout_loss(model, batches).sources) == {"all"}


def test_bad_batches(model: Any) -> None:
    (batch, _) = make_batches(model)
    with pytest.raises(DataError, match="labels"):
        heldout_loss(model, [{"input_ids": batch["input_ids"]}])
    with pytest.raises(DataError, match="4 values"):
        heldout_loss(model, [{**batch, "source": ["a"]}])
    with pytest.raises(DataError, match=r"0\.\.1"):
        heldout_loss(model, [{**batch, "source": torch.tensor([0, 1, 2, 0])}], source_names=["a", "b"])
    with pytest.raises(InputError, match="chunk_tokens"):
        heldout_loss(model, [batch], chunk_tokens=0)
    with pytest.raises(UnsupportedModelError, match="Linear"):
        heldout_loss(torch.nn.Linear(2, 2), [batch])


def test_non_finite_loss_names_the_row(model: Any) -> None:
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="batch 0, row 0"):
        heldout_loss(model, make_batches(model))
