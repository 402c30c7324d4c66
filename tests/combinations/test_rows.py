"""Rows that a model cannot take are named before anything is trained."""

import pytest
import torch

from corebatch.batch.row_checks import check_rows
from corebatch.errors import DataError
from corebatch.model.limits import RowLimits, row_limits
from corebatch.trainer import CoresetConfig
from models import ARCHITECTURES, LENGTH
from models import tiny_model as one_of
from training import VOCABULARY, Collator, mixture, run, same, tiny_model, trainer, weights


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_limit_is_where_the_model_ends(kind):
    model = one_of(kind)
    limits = row_limits(model)
    vocabulary = model.config.vocab_size
    assert (limits.vocabulary, limits.targets) == (vocabulary, vocabulary)
    rows = torch.randint(3, vocabulary, (1, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(input_ids=rows[:, :LENGTH])
        if limits.longest is None:
            model(input_ids=rows)
        else:
            assert limits.longest == LENGTH
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=rows)


def test_adapters_and_tied_heads_do_not_hide_the_limits():
    expected = RowLimits(vocabulary=VOCABULARY, targets=VOCABULARY, longest=64)
    assert row_limits(tiny_model("gpt2", lora=True)) == expected
    assert row_limits(tiny_model("gpt2", lora=False)) == expected


def rows_with(number, **changes):
    rows = list(mixture(64))
    rows[number] = {**rows[number], **{key: change(list(rows[number][key])) for key, change in changes.items()}}
    return type(mixture(1)).from_list(rows)


def longer(values):
    return (values * 20)[:70]


DAMAGED = {
    "too long": (
        {"input_ids": longer, "labels": longer},
        r"at most 64 tokens.*Found 70 tokens in examples 17 of the train set",
    ),
    "an id outside": ({"input_ids": lambda ids: [*ids[:-1], 999]}, r"from 0 to 47.*Found 999 in examples 17 "),
    "a negative id": ({"input_ids": lambda ids: [-1, *ids[1:]]}, r"Token ids.*Found -1 in examples 17 "),
    "a label outside": (
        {"labels": lambda labels: [*labels[:-1], 48]},
        r"Labels.*from 0 to 47.*Found 48 in examples 17 ",
    ),
    "a negative label": ({"labels": lambda labels: [*labels[:-1], -7]}, r"Labels.*Found -7 in examples 17 "),
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("scoring", ["full", "none"])
def test_a_damaged_row_is_named_and_nothing_is_trained(tmp_path, damage, scoring):
    changes, message = DAMAGED[damage]
    model = tiny_model("gpt2")
    made = trainer(
        tmp_path, model, CoresetConfig(pool_factor=8, scoring=scoring), train_dataset=rows_with(17, **changes)
    )
    before = weights(made)
    with pytest.raises(DataError, match=message):
        run(made)  # a pool holds all 64 rows
    assert made.state.global_step == 0
    assert same(before, weights(made))


def test_padding_beyond_the_limit_is_told_apart_from_long_rows(tmp_path):
    class Wide(Collator):
        def __call__(self, rows):
            return {key: torch.nn.functional.pad(value, (0, 70), value=-100 if key == "labels" else 0)
                    for key, value in super().__call__(rows).items()}  # fmt: skip

    with pytest.raises(DataError, match=r"at most 64 positions wide.*padding included"):
        run(trainer(tmp_path, tiny_model("gpt2"), data_collator=Wide()))


def test_what_is_right_passes_without_a_look_at_rows(monkeypatch):
    batch = Collator()(list(mixture(8)))
    calls = []
    usual = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: calls.append(tensor.shape) or usual(tensor))
    check_rows([batch] * 5, VOCABULARY, 64)
    assert calls == [(4,), (4,)]  # however many batches and rows
