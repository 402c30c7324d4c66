"""Passes that leave out rows that are learnt, through the Trainer: which rows come, with what weight, resumed, and in
whole steps."""

import json
from collections import Counter
from itertools import chain, product

import pytest
import torch
from accelerate import skip_first_batches
from transformers import TrainerCallback

from corebatch.batch.trained_losses import TrainedLosses
from corebatch.errors import ConfigError, DataError, LossMismatchError
from corebatch.sampling.learnt import LEARNT, make_learnt
from corebatch.trainer import CoresetConfig
from training import BY_LENGTH, Collator, resumed_at, run, same, tiny_model, trainer, weights

PASSES = 4
METHODS = {
    "infobatch": {"method": "infobatch", "prune": 0.8, "whole": 0.2},
    "by_size": {"method": "by_size", "keep_share": 0.4},
    "seta": {"method": "seta", "groups": 4, "window": 0.5},
    "tail": {"method": "tail", "fall": 1.0, "again": 0.2},
    "floor": {"method": "floor", "below": 3.7},
}


def coreset(method, **settings):
    return CoresetConfig(sampling={"learnt": method}, **{"pool_factor": 1, **settings})


def lines(folder, name="selection.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def drawn(folder):
    return [number for line in lines(folder, "chosen.jsonl") for number in line["chosen"] + line["passed"]]


def test_every_method_is_tried():
    assert set(METHODS) == set(LEARNT)


@pytest.mark.parametrize("pool_factor", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_a_pass_that_leaves_rows_out_goes_on_into_the_next(tmp_path, name, pool_factor):
    """The steps are as many as the plain Trainer's, and each pass has what the method keeps of what is known then."""
    method = make_learnt(METHODS[name])
    kept, keep = [], type(method)._keep

    class Watched(type(method)):
        def _keep(self, known, number, random):
            found = keep(self, known, number, random)
            kept.append((number, found.rows.tolist(), int(known.losses.isfinite().sum())))
            return found

    watched = Watched(**{key: value for key, value in METHODS[name].items() if key != "method"})
    made = trainer(
        tmp_path, tiny_model(lora=False), coreset(watched, pool_factor=pool_factor),
        max_steps=-1, num_train_epochs=PASSES, learning_rate=0.01,
    )  # fmt: skip
    run(made)
    large, count = 8 * pool_factor, len(made.train_dataset)
    assert made.state.max_steps == PASSES * -(-count // large)
    numbers, found = drawn(tmp_path), lines(tmp_path)
    assert len(numbers) == made.state.max_steps * large
    rows = {line["data_pass"]: line["pass_rows"] for line in found}
    assert max(rows) > PASSES, "passes are shorter than epochs"
    assert min(rows.values()) < count
    assert [number for number, _, _ in kept] == list(range(len(kept)))
    assert [bool(known) for _, _, known in kept] == [False, *[True] * (len(kept) - 1)]
    planned = [each for _, each, _ in kept] + [list(range(count))] * (max(rows) - len(kept))  # the last ones are whole
    assert [rows.get(at + 1, len(each)) for at, each in enumerate(planned)] == [len(each) for each in planned]
    come, ends = Counter(numbers), len(list(chain.from_iterable(planned))) - len(numbers)
    assert 0 <= ends < len(planned[-1])
    whole = Counter(chain.from_iterable(planned[:-1]))
    assert whole <= come
    assert come - whole <= Counter(planned[-1])


class Updates(TrainerCallback):
    """Keeps the weights before a step and its gradient."""

    def __init__(self, step):
        self.step, self.before, self.gradient = step, None, None

    def on_step_begin(self, args, state, control, model=None, **_):
        if state.global_step == self.step:
            self.before = {name: value.detach().clone() for name, value in model.named_parameters()}

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        if state.global_step == self.step:
            self.gradient = {name: value.grad.clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize(
    "name, objective",
    [*product(["infobatch", "by_size"], ["tokens", "examples", "drawn", "sources"]), ("seta", "tokens")],
)
def test_the_update_is_the_formulas(tmp_path, name, objective):
    """sum_i a_i u_i L_i / sum_i a_i l_i with a_i = 1 / pi_i; ones for a biased method, and for the objective drawn."""
    model, more = tiny_model(lora=False, dtype=torch.float64), {"prune": 0.5} if name == "infobatch" else {}
    made = trainer(
        tmp_path, model, coreset({**METHODS[name], **more, "whole": 0}, objective=objective),
        max_steps=23, max_grad_norm=0, learning_rate=0.01,
    )  # fmt: skip
    watch = Updates(22)
    made.add_callback(watch)
    run(made)
    passes = made._run.learnt
    ids = torch.tensor(sorted(lines(tmp_path, "chosen.jsonl")[-1]["chosen"]))
    found = passes.weights(22, ids)
    assert (found is None) == (name == "seta")
    often = torch.ones(len(ids)).double() if found is None or objective == "drawn" else found
    assert found is None or float(found.max()) > 1.05
    for key, value in model.named_parameters():
        value.data.copy_(watch.before[key])
        value.grad = None
    claims, collate = made._run.step.claims, Collator()
    total, parts = 0.0, 0.0
    for number, weight in zip(ids.tolist(), often.tolist(), strict=True):
        row = made.train_dataset[number]
        batch = collate([row])
        tokens = int((batch["labels"][0, 1:] != -100).sum())
        loss = model(**batch).loss * tokens
        unit = tokens if objective == "examples" else 1
        share = 1.0
        if objective == "sources":
            names = {claims.counts.names[source]: source for source in claims.counts.tokens}
            own = claims.counts.tokens[names[row["source"]]]
            share = sum(claims.counts.tokens.values()) / own / len(names)
        total, parts = total + weight * share * loss / unit, parts + weight * tokens / unit
    (total / parts).backward()
    for key, value in model.named_parameters():
        assert float((watch.gradient[key] - value.grad).norm()) <= 1e-6 * float(value.grad.norm())


AHEAD = {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 3}
"""Rows are asked for before the step that trains them."""


@pytest.mark.parametrize("name, pool_factor, more", [("infobatch", 1, {}), ("by_size", 2, {}), ("by_size", 1, AHEAD)])
def test_resumed_is_uninterrupted(tmp_path, name, pool_factor, more):
    chosen = coreset({**METHODS[name], "whole": 0.1}, pool_factor=pool_factor)
    settings = {"max_steps": 32, "save_strategy": "steps", "save_steps": 5, **more}

    def made(folder):
        return trainer(folder, tiny_model(dropout=0.1, lora=False), chosen, **settings)

    whole = run(made(tmp_path / "whole"))
    for step in (5, 25):  # within the first pass, and within a later one that was planned by what is remembered
        killed, resumed = resumed_at(step, tmp_path / "whole", made)
        assert same(weights(whole), weights(resumed))
        assert (killed / "chosen.jsonl").read_text() == (tmp_path / "whole" / "chosen.jsonl").read_text()
        memories = [each._run.learnt.memory.state_dict() for each in (whole, resumed)]
        assert all(torch.equal(memories[0][key].nan_to_num(-1), memories[1][key].nan_to_num(-1)) for key in memories[0])


def test_sizes_are_those_of_the_claimed_gradient(tmp_path):
    """u_i sqrt(sum_t (1 - p_t)^2), without what undoes the drawing."""
    made = trainer(tmp_path, tiny_model(lora=False), coreset("by_size", objective="sources"), max_steps=1)
    model = made.model.eval()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    run(made)
    for name, value in model.named_parameters():
        value.data.copy_(before[name])
    model.requires_grad_(False)
    memory, claims = made._run.learnt.memory, made._run.step.claims
    names = {claims.counts.names[source]: source for source in claims.counts.tokens}
    seen = memory.losses.isfinite().nonzero().flatten().tolist()
    assert len(seen) == 8
    for number in seen:
        row = made.train_dataset[number]
        batch = Collator()([row])
        labels = batch["labels"][0, 1:]
        logs = model(**batch).logits[0, :-1].log_softmax(-1)[labels != -100].gather(1, labels[labels != -100, None])
        own = claims.counts.tokens[names[row["source"]]]
        factor = sum(claims.counts.tokens.values()) / own / len(names)
        assert float(memory.losses[number]) == pytest.approx(float(-logs.mean()), rel=1e-5)
        assert float(memory.sizes[number]) == pytest.approx(
            factor * float((1 - logs.exp()).square().sum().sqrt()), rel=1e-5
        )


def test_a_whole_pass_is_no_other_update(tmp_path):
    """Until something is left out rows count as in the plain Trainer."""
    made = trainer(tmp_path / "a", tiny_model(lora=False), coreset("infobatch"), max_steps=10)
    run(made)
    assert all(line["weights"] == line["chosen"] for line in lines(tmp_path / "a"))
    assert made._run.learnt.weights(0, torch.tensor(sorted(lines(tmp_path / "a", "chosen.jsonl")[0]["chosen"]))) is None


BAD = {
    "an unknown method": ({"sampling": {"learnt": "infobach"}}, "Did you mean 'infobatch'"),
    "an unknown option": ({"sampling": {"learnt": {"method": "seta", "window_scale": 0.5}}}, "window_scale"),
    "no method": ({"sampling": {"learnt": {"prune": 0.5}}}, "should name a method"),
    "all are pruned": ({"sampling": {"learnt": {"method": "infobatch", "prune": 1.0}}}, "from 0 to 0.9"),
    "nothing is kept": ({"sampling": {"learnt": {"method": "by_size", "keep_share": 0}}}, "above 0 and at most 1"),
    "a window of nothing": ({"sampling": {"learnt": {"method": "seta", "groups": 2, "window": 0.1}}}, "hold a group"),
    "whole": ({"sampling": {"learnt": {"method": "tail", "whole": -0.1}}}, "whole of tail"),
    "shares beside it": ({"sampling": {"learnt": "seta", "temperature": 0.5}}, "Found temperature beside it"),
    "replay beside it": ({"sampling": {"learnt": "seta"}, "replay": {"rare": 0.1}}, "Found both"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_named(case):
    settings, message = BAD[case]
    with pytest.raises(ConfigError, match=message):
        CoresetConfig(**settings)


def test_what_has_no_rows_or_losses_is_refused(tmp_path):
    model = tiny_model(lora=False)
    with pytest.raises(ConfigError, match="group_by_length"):
        trainer(tmp_path, model, coreset("seta"), **BY_LENGTH)
    with pytest.raises(ConfigError, match="loss_by_source false"):
        trainer(tmp_path, model, coreset("seta", loss_by_source=False))
    made = trainer(tmp_path, model, coreset("seta"), max_steps=10, save_strategy="steps", save_steps=5)
    run(made)
    again = trainer(
        tmp_path, model, coreset("seta"), max_steps=12, save_strategy="steps", save_steps=5, ignore_data_skip=True
    )
    with pytest.raises(ConfigError, match="ignore_data_skip"):
        run(again, resume_from_checkpoint=str(tmp_path / "checkpoint-5"))


def test_losses_that_are_not_known_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainedLosses, "settle", lambda self, numbers: None)
    with pytest.raises(LossMismatchError, match=r"sampling\.learnt follows"):
        run(trainer(tmp_path, tiny_model(lora=False), coreset("floor"), max_steps=4))


def test_a_loader_that_skips_rows_is_named(tmp_path, monkeypatch):
    made = trainer(tmp_path, tiny_model(lora=False), coreset("infobatch"), max_steps=60)
    load = made.get_train_dataloader
    monkeypatch.setattr(made, "get_train_dataloader", lambda: skip_first_batches(load(), 1))
    with pytest.raises(DataError, match=r"At step \d+ others came than the"):
        run(made)
