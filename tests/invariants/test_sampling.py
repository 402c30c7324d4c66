"""Rows that come with shares of their own, through the Trainer: which, how often, on how many ranks, and resumed."""

import json
from collections import Counter

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer, TrainerCallback

from corebatch.errors import CheckpointError, ConfigError
from corebatch.trainer import CoresetConfig, CoresetMixin, CoresetTrainer
from corebatch.types import ID
from training import BY_LENGTH, Collator, arguments, mixture, resumed_at, run, same, tiny_model, trainer, weights

UPSAMPLED = {"shares": {"rare": 0.4}}
CASES = {
    "shares": UPSAMPLED,
    "fixed": {"temperature": 0, "epochs": "fixed"},
    "all_seen": {**UPSAMPLED, "until": "all_seen"},
    "schedule": {"shares": [{"until": 0.3, "is": {}}, {"is": {"rare": 0.6}, "ramp": True}]},
}


def sources(dataset, ids):
    return Counter(dataset[number]["source"] for number in ids)


def drawn(folder):
    """Ids that each step drew, in the order of their numbers."""
    lines = [json.loads(line) for line in (folder / "chosen.jsonl").read_text().splitlines()]
    return [sorted(line["chosen"] + line["passed"]) for line in lines]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pool_factor", [1, 2])
def test_the_rows_of_each_step_are_the_samplers(tmp_path, case, pool_factor):
    """Rows that come twice in a pool are drawn twice, and may be trained twice."""
    made = trainer(
        tmp_path, tiny_model(lora=False), CoresetConfig(sampling=CASES[case], pool_factor=pool_factor),
        max_steps=-1, num_train_epochs=2.5,
    )  # fmt: skip
    run(made)
    large = 8 * pool_factor
    sampler = made.get_train_dataloader().batch_sampler.sampler
    expected = torch.cat([sampler.order(epoch) for epoch in range(3)]).view(-1, large).sort(dim=1).values.tolist()
    rows = drawn(tmp_path)
    assert len(rows) == made.state.max_steps == round(2.5 * sampler.steps)
    assert rows == expected[: len(rows)]
    assert made.state.epoch == pytest.approx(2.5, abs=0.5 / sampler.steps)
    if case == "shares":
        assert any(len(set(ids)) < large for ids in rows)  # 6 rows of 40 %
        lines = [json.loads(line) for line in (tmp_path / "selection.jsonl").read_text().splitlines()]
        assert all(line["chosen_examples"] == 8 for line in lines)
        counts = sources(made.train_dataset, [number for ids in rows[: sampler.steps] for number in ids])
        assert counts["rare"] == pytest.approx(0.4 * 96, abs=1)


def test_every_row_that_comes_twice_is_trained_twice(tmp_path):
    made = trainer(tmp_path, None, CoresetConfig(sampling={"shares": {"rare": 1.0}}, pool_factor=1), max_steps=4)
    trained = []
    step = made.training_step
    made.training_step = lambda model, inputs, *args: (
        trained.append(inputs["input_ids"].shape[0]) or step(model, inputs, *args)
    )
    run(made)
    assert trained == [4] * 8
    assert all(len(set(ids)) < len(ids) == 8 for ids in drawn(tmp_path))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pool_factor", [1, 2])
def test_resumed_is_uninterrupted(tmp_path, case, pool_factor):
    coreset = CoresetConfig(sampling=CASES[case], pool_factor=pool_factor)
    settings = {"max_steps": 17, "save_strategy": "steps", "save_steps": 5}

    def made(folder):
        return trainer(folder, tiny_model(dropout=0.1, lora=False), coreset, **settings)

    whole = run(made(tmp_path / "whole"))
    for step in (5, 15):  # in the first epoch, and in the second or third
        killed, resumed = resumed_at(step, tmp_path / "whole", made)
        assert same(weights(whole), weights(resumed))
        assert drawn(killed) == drawn(tmp_path / "whole")


def test_a_run_goes_on_with_its_own_shares_alone(tmp_path):
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    run(trainer(tmp_path, None, CoresetConfig(sampling=UPSAMPLED), **settings))
    for other in (None, {"temperature": 0}):
        made = trainer(tmp_path, None, CoresetConfig(sampling=other), **{**settings, "max_steps": 3})
        with pytest.raises(CheckpointError, match=r"sampling was .*'rare': 0.4"):
            run(made, resume_from_checkpoint=True)


@pytest.mark.parametrize("ranks, micro_batch, accumulation", [(1, 8, 2), (2, 4, 2), (2, 8, 1), (4, 4, 1)])
def test_every_split_of_the_large_batch_has_the_same_steps(tmp_path, monkeypatch, ranks, micro_batch, accumulation):
    """35 rows are no whole number of steps; the epoch is rounded up, and no row is copied to even out ranks."""
    monkeypatch.setattr("accelerate.data_loader.synchronize_rng_states", lambda *_: None)
    made = trainer(tmp_path, None, CoresetConfig(sampling=UPSAMPLED), train_dataset=mixture(35), max_steps=5)
    sampler = made.get_train_dataloader().batch_sampler.sampler
    assert len(sampler) == 48
    plain = DataLoader(range(35), batch_size=micro_batch, sampler=sampler)
    loaders = [
        prepare_data_loader(plain, num_processes=ranks, process_index=rank, put_on_device=False)
        for rank in range(ranks)
    ]
    assert {len(loader) for loader in loaders} == {3 * accumulation}
    parts = zip(*loaders, strict=True)
    rows = torch.cat([batch for batches in parts for batch in batches])
    assert rows.tolist() == sampler.order(0).tolist()


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(mixture())


@pytest.mark.parametrize(
    "sampling, settings, message",
    [
        ({"shares": {"rar": 0.5}}, {}, "algebra, geometry, logic, rare. Found 'rar'. Did you mean 'rare'"),
        (UPSAMPLED, {"train_dataset": Stream()}, "Found a stream"),
        (UPSAMPLED, BY_LENGTH, "Found 'group_by_length'"),
        (UPSAMPLED, {"train_dataset": mixture(source=False)}, "sources of the data set: all. Found 'rare'"),
    ],
)
def test_what_shares_do_not_go_with_is_an_error_when_the_trainer_is_made(tmp_path, sampling, settings, message):
    for pool_factor in (1, 2):
        with pytest.raises(ConfigError, match=message):
            trainer(tmp_path, None, CoresetConfig(sampling=sampling, pool_factor=pool_factor), **settings)


class Sequential(Trainer):
    def _get_train_sampler(self, *args):
        return SequentialSampler(self.train_dataset)


class SequentialCoreset(CoresetTrainer):
    _get_train_sampler = Sequential._get_train_sampler


class CoresetOfSequential(CoresetMixin, Sequential):
    pass


@pytest.mark.parametrize("kind", [SequentialCoreset, CoresetOfSequential])
def test_a_sampler_of_ones_own_is_an_error(tmp_path, kind):
    made = kind(
        model=tiny_model(), args=arguments(tmp_path), train_dataset=mixture(), data_collator=Collator(),
        coreset=CoresetConfig(sampling=UPSAMPLED),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"Found a (train loader with a sampler|SequentialSampler).*of (its|the)"):
        run(made)


def test_data_without_columns_and_many_sources(tmp_path):
    """A torch data set; and a column of many values, which is the source since shares were asked for."""
    rows = [dict(row) for row in mixture()]
    made = run(trainer(tmp_path / "list", None, CoresetConfig(sampling=UPSAMPLED), train_dataset=rows, max_steps=6))
    assert sources(rows, [number for ids in drawn(tmp_path / "list") for number in ids])["rare"] == pytest.approx(
        38, abs=1
    )
    many = mixture().remove_columns("source").add_column("source", [f"page {i // 2}" for i in range(96)])
    coreset = CoresetConfig(sampling={"shares": {"page 7": 0.5}}, source_column="source")
    made = run(trainer(tmp_path / "many", None, coreset, train_dataset=many, max_steps=2))
    assert len(made._tagged.latest(made).names) == 48
    assert ID not in made.train_dataset.column_names


def test_the_record_says_what_is_drawn(tmp_path, caplog):
    with caplog.at_level("WARNING"):
        run(trainer(tmp_path, None, CoresetConfig(sampling={"shares": {"rare": 1.0}}), max_steps=1))
    assert "rare 1 (in the data 0.0625)" in caplog.text
    assert "count as in the data, by weights; objective drawn" in caplog.text
    assert "Never drawn: algebra, geometry, logic." in caplog.text
    record = json.loads((tmp_path / "corebatch.json").read_text())
    assert record["coreset"]["sampling"] == {"shares": {"rare": 1.0}}
    assert record["claimed"] == "the mean over trained tokens, sources drawn with the shares rare 1"
    with caplog.at_level("WARNING"):
        run(trainer(tmp_path / "replayed", None, CoresetConfig(replay={"rare": 0.25}, pool_factor=1), max_steps=1))
    assert "has them count for a mean over sources with the shares rare 0.25, by weights" in caplog.text


def test_a_source_that_counts_and_is_never_drawn_is_an_error(tmp_path):
    never = {"shares": {"algebra": 0.5, "logic": 0.5}}
    for objective in ("sources", {"temperature": 0.5}, {"rare": 0.2}):
        made = trainer(tmp_path, None, CoresetConfig(sampling=never, objective=objective))
        with pytest.raises(ConfigError, match=r"geometry, rare count. Found that coreset.sampling draws no row"):
            run(made)
    run(trainer(tmp_path, None, CoresetConfig(sampling=never, objective={"logic": 1, "algebra": 0}), max_steps=1))


# ---- what is trained is what is claimed, whatever is drawn -----------------------------------------------------------

TARGETS = {
    "tokens": lambda tokens, rows, drawn: tokens,
    "sources": lambda tokens, rows, drawn: torch.ones_like(tokens),
    "examples": None,
    "drawn": lambda tokens, rows, drawn: drawn * tokens / rows,
}


class Gradients(TrainerCallback):
    """Of each step the gradient times what it was divided by, along some directions, and that."""

    def __init__(self, made, directions):
        self.made, self.directions, self.sums, self.divisors = made, directions, [], []
        note = made._recorder.note
        made._recorder.note = lambda small: self.see(small) or note(small)
        made.add_callback(self)

    def see(self, small):
        divisor = small.weights.denominator
        trained = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in small.micro_batches)
        self.divisors.append(float(trained if divisor is None else divisor))

    def on_pre_optimizer_step(self, *_, **__):
        flat = torch.cat([p.grad.flatten() for p in self.made.model.parameters() if p.grad is not None])
        self.sums.append(self.directions @ flat * self.divisors[-1])


def by_source(model, dataset):
    """Summed gradients [S, parameters] of each source's rows, in tokens' and in examples' units; tokens and rows."""
    names = sorted(set(dataset["source"]))
    sums, means, tokens, rows = [], [], torch.zeros(len(names)).double(), torch.zeros(len(names)).double()
    for place, name in enumerate(names):
        losses = []
        for row in dataset.filter(lambda row, name=name: row["source"] == name):
            batch = Collator()([row])
            count = int((batch["labels"][:, 1:] != -100).sum())
            losses.append(torch.stack([model(**batch).loss * count, model(**batch).loss]))
            tokens[place], rows[place] = tokens[place] + count, rows[place] + 1
        for kind, total in zip((sums, means), torch.stack(losses).sum(dim=0), strict=True):
            model.zero_grad()
            total.backward(retain_graph=True)
            kind.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    model.zero_grad()
    return torch.stack(sums), torch.stack(means), tokens, rows


@pytest.mark.parametrize("pool_factor, objective", [(1, "tokens"), (1, "examples"), (2, "sources"), (2, "drawn")])
def test_the_mean_of_what_is_trained_is_the_claim(tmp_path, objective, pool_factor):
    """Over 200 steps without learning: sums of gradients over sums of what they are divided by, against autograd."""
    dataset, model = mixture(96), tiny_model(lora=False, dtype=torch.float64)
    sums, means, tokens, rows = by_source(model, dataset)
    made = trainer(
        tmp_path, model, CoresetConfig(sampling=CASES["shares"], objective=objective, pool_factor=pool_factor),
        train_dataset=dataset, max_steps=200, learning_rate=0.0, optim="sgd", max_grad_norm=0, logging_steps=1000,
    )  # fmt: skip
    shares = {name: of(tokens, rows, made._run.draws.shares(0)) for name, of in TARGETS.items() if of is not None}
    targets = {name: (share / share.sum()) @ (sums / tokens.unsqueeze(1)) for name, share in shares.items()}
    targets["examples"] = means.sum(dim=0) / rows.sum()
    directions = torch.randn(24, sums.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = Gradients(made, directions)
    run(made)
    trained, divisors = torch.stack(found.sums), torch.tensor(found.divisors, dtype=torch.float64)

    def scores(target):
        """Standard errors between the ratio of sums and the target (Cochran 1977, chapter 6)."""
        residuals = trained - divisors.unsqueeze(1) * (directions @ target)
        return residuals.mean(dim=0) / residuals.std(dim=0) * len(divisors) ** 0.5

    assert scores(targets[objective]).abs().max() < 4
    assert scores(targets[objective]).square().mean() < 1.6
    other = "tokens" if objective == "drawn" else "drawn"
    assert scores(targets[other]).square().mean() > 3  # the test would see what was trained without weights
