"""The training loss of each source, out of the forwards that train, against each row run by itself."""

import json

import pytest
import torch
import torch.nn.functional as F
from transformers import TrainerCallback

from corebatch.errors import ConfigError
from corebatch.model import head_loss, training_losses
from corebatch.trainer import CoresetConfig, CoresetTrainer
from models import tiny_batch
from models import tiny_model as model_of_kind
from training import SOURCES, Collator, arguments, mixture, run, same, tiny_model, trainer, weights

CHECKPOINTING = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
WAYS = {
    "weights": ({}, {}),
    "uniform": ({"selector": "random"}, {}),
    "example_mean": ({"loss": "example_mean"}, {}),
    "two_phase": ({"scoring": {"way": "two_phase", "proxy": "norm"}, "pool_factor": 4}, {}),
    "small_kept": ({"small_sources": "auto", "selector": "random"}, {}),
    "packed": ({"padding_free": True, "scoring": "full"}, {}),
    "packed_uniform": ({"padding_free": True, "selector": "random"}, {}),
    "every_row": ({"pool_factor": 1, "micro_batches": "positions"}, {}),
    "in_parts": ({"pool_factor": 1, "micro_batches": {"by": "positions", "most": 24}}, {}),
    "plain": ({"pool_factor": 1, "loss_by_source": True}, {}),
    "objective": ({"objective": "sources"}, {}),
    "every_row_weighed": ({"pool_factor": 1, "objective": "examples"}, {}),
    "checkpointing": ({"scoring": {"way": "full", "reuse": True}}, CHECKPOINTING),
    "empty_slots": ({"pool_factor": 3}, {"rows": 35, "num_train_epochs": 1, "max_steps": -1}),
}


def lines(folder, name="selection.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def sums_of_rows(model, data):
    """[N]: the summed token loss of each row, run by itself, and [N] its trained tokens."""
    losses, tokens = [], []
    with torch.no_grad():
        for row in data:
            labels = torch.tensor(row["labels"])
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].double()
            losses.append(float(F.cross_entropy(logits, labels[1:], reduction="sum", ignore_index=-100)))
            tokens.append(int((labels[1:] != -100).sum()))
    return losses, tokens


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("lora", [True, False], ids=["frozen_head", "trained_head"])
@pytest.mark.parametrize("way", WAYS)
def test_it_is_that_of_the_rows_run_by_themselves(tmp_path, monkeypatch, way, lora):
    coreset, settings = WAYS[way]
    monkeypatch.setattr(head_loss, "CHUNK_ELEMENTS", 48 * 5)  # a head in several chunks
    data = mixture(settings.get("rows", 96)).add_column("number", range(settings.pop("rows", 96)))
    data = data.map(lambda row: {"labels": [-100] * len(row["labels"])} if row["number"] in (3, 40) else {})
    data = data.remove_columns("number")  # two rows have no trained token
    settings = {"max_steps": 4, "learning_rate": 0.0, "logging_steps": 2, **settings}
    made = run(trainer(tmp_path, tiny_model(lora=lora), CoresetConfig(**coreset), train_dataset=data, **settings))
    made.model.eval()
    losses, tokens = sums_of_rows(made.model, data)
    seen = set()
    for line, rows in zip(lines(tmp_path), lines(tmp_path, "chosen.jsonl"), strict=True):
        given = rows.get("weights") or [1.0] * len(rows["chosen"])
        means, over = {}, {}
        for source in SOURCES:
            own = [(i, w) for i, w in zip(rows["chosen"], given, strict=True) if data[i]["source"] == source]
            if count := sum(w * tokens[i] for i, w in own):
                over[source], means[source] = count, sum(w * losses[i] for i, w in own) / count
        assert line["loss_by_source"] == pytest.approx(means, rel=2e-4)  # weights are recorded to four digits
        assert line["loss_tokens"] == pytest.approx(over, rel=2e-3)
        expected = [pytest.approx(losses[i] / tokens[i], rel=2e-5) if tokens[i] else None for i in rows["chosen"]]
        assert rows["losses"] == expected
        seen |= set(means)
    assert len(seen) == len(SOURCES)
    _logged(made, lines(tmp_path))


def _logged(made, steps):
    """What the log shows is the mean over the steps since the last time, by tokens."""
    for entry in made.state.log_history:
        if "loss" not in entry:
            continue
        since = [step for step in steps if entry["step"] - 2 < step["step"] <= entry["step"]]
        for source in SOURCES:
            known = [(s["loss_by_source"][source], s["loss_tokens"][source]) for s in since
                     if source in s["loss_by_source"]]  # fmt: skip
            if known:
                mean = sum(loss * count for loss, count in known) / sum(count for _, count in known)
                assert entry[f"loss/{source}"] == pytest.approx(mean, rel=1e-5)
            else:
                assert f"loss/{source}" not in entry


def test_of_what_was_drawn_where_all_of_it_was_scored(tmp_path):
    data = mixture()
    made = run(trainer(tmp_path, coreset=CoresetConfig(scoring="full"), max_steps=2, learning_rate=0.0))
    losses, tokens = sums_of_rows(made.model.eval(), data)
    for line, rows in zip(lines(tmp_path), lines(tmp_path, "chosen.jsonl"), strict=True):
        drawn = [*rows["chosen"], *rows["passed"]]
        for source, mean in line["drawn_loss_by_source"].items():
            own = [i for i in drawn if data[i]["source"] == source]
            assert mean == pytest.approx(sum(losses[i] for i in own) / sum(tokens[i] for i in own), rel=1e-5)


class Fixed(Collator):
    """Every batch is as wide as the longest row of all."""

    def __call__(self, rows):
        made = super().__call__(rows)
        more = 24 - made["input_ids"].shape[1]
        fill = {"input_ids": 0, "labels": -100, "attention_mask": 0}
        return {key: F.pad(value, (0, more), value=fill[key]) for key, value in made.items()}


@pytest.mark.parametrize("collator", [Collator, Fixed])
@pytest.mark.parametrize("kind", ["llama", "phi", "gpt2"])
def test_with_nothing_else_the_update_is_the_plain_trainer_s_bit_for_bit(tmp_path, kind, collator):
    ended, history = [], []
    for plain in (True, False):
        model = tiny_model(kind, lora=kind == "phi", dropout=0.1)
        coreset = CoresetConfig(pool_factor=1, loss_by_source=True)
        settings = {"data_collator": collator(), "num_train_epochs": 2, "max_steps": -1, "train_dataset": mixture(45)}
        made = run(trainer(tmp_path / str(plain), model, coreset, plain=plain, **settings))
        ended.append(weights(made))
        history.append([(e["loss"], e["grad_norm"]) for e in made.state.log_history if "loss" in e])
    assert same(*ended)
    assert history[0] == history[1]
    assert len(lines(tmp_path / "False")) == 12


def test_a_log_line_goes_on_after_a_resume_as_it_would_have(tmp_path):
    settings = {"max_steps": 8, "logging_steps": 2, "save_strategy": "steps", "save_steps": 4}
    logs = []
    for resumed in (False, True):
        made = trainer(tmp_path, coreset=CoresetConfig(), **settings)
        if resumed:
            (tmp_path / "checkpoint-8").rename(tmp_path / "later")
        run(made, **({"resume_from_checkpoint": True} if resumed else {}))
        logs.append([{k: v for k, v in e.items() if k.startswith("loss")} for e in made.state.log_history])
    assert logs[0] == logs[1]
    assert any("loss/algebra" in entry for entry in logs[0])


# ---- what is known of a forward --------------------------------------------------------------------------------------


def reference(model, batch):
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    losses = F.cross_entropy(logits.double().transpose(1, 2), batch["labels"][:, 1:], reduction="none")
    return F.pad(losses, (1, 0))


@pytest.mark.parametrize("items", [None, torch.tensor(23)])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "granite", "mpt"])
def test_autograd_and_logits_tell_the_same(monkeypatch, kind, items):
    model, batch = model_of_kind(kind, dtype=torch.float32).train(), tiny_batch()
    batch.pop("position_ids")
    given = {} if items is None else {"num_items_in_batch": items}
    output = model(**batch, **given)
    expected = reference(model, batch)
    by_graph, sound = training_losses.training_losses(output, batch["labels"], items)
    assert bool(sound)
    torch.testing.assert_close(by_graph.double(), expected, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(training_losses, "CHUNK_ELEMENTS", 64 * 3)
    assert training_losses._of_graph(output.loss, batch["labels"]) is not None
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):  # somebody's offloading
        assert training_losses._of_graph(output.loss, batch["labels"]) is None
        by_logits, sound = training_losses.training_losses(output, batch["labels"], items)
    assert bool(sound)
    torch.testing.assert_close(by_logits.double(), expected, atol=1e-5, rtol=1e-5)
    output.logits.data.mul_(0.5)  # as a loss that keeps gradients in their place
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        assert not bool(training_losses.training_losses(output, batch["labels"], items)[1])


def test_no_forward_is_run_for_it(tmp_path):
    counts = []
    for wanted in (True, False):
        model = tiny_model()
        forwards = []
        model.register_forward_hook(lambda *_, into=forwards: into.append(1))
        coreset = CoresetConfig(pool_factor=1, micro_batches="positions", loss_by_source=wanted)
        run(trainer(tmp_path / str(wanted), model, coreset))
        counts.append(len(forwards))
    assert counts[0] == counts[1]


class Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class OwnLoss(CoresetTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        given = self.row_weights(inputs)
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1].float()
        losses = F.cross_entropy(logits.transpose(1, 2), inputs["labels"][:, 1:], reduction="none")
        loss = (given * losses.sum(dim=1)).sum() / num_items_in_batch
        return (loss, {}) if return_outputs else loss


class OwnStep(CoresetTrainer):
    """Hands all that it is given to the model."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        loss = model(**self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch).loss
        self.accelerator.backward(loss)
        return loss.detach()


@pytest.mark.parametrize("kind", [OwnLoss, OwnStep])
def test_a_loss_that_tells_nothing_is_unknown_and_told_once(tmp_path, caplog, kind):
    coreset = CoresetConfig(pool_factor=1, loss_by_source=True)
    args = {"args": arguments(tmp_path), "train_dataset": mixture(), "data_collator": Collator(), "model": tiny_model()}
    made = run(kind(coreset=coreset, **args))
    assert all(line["loss_by_source"] is None and line["loss_tokens"] is None for line in lines(tmp_path))
    assert all(rows["losses"] is None for rows in lines(tmp_path, "chosen.jsonl"))
    assert not any(key.startswith("loss/") for entry in made.state.log_history for key in entry)
    assert caplog.text.count("The training loss by source is not known") == 1


def test_a_fused_loss_is_unknown(caplog):
    model, batch = model_of_kind(dtype=torch.float32).train(), tiny_batch()
    output = model(**batch)
    output["loss"] = Opaque.apply(output["loss"]) * 1.0
    output["logits"] = None
    # the cross-entropy behind it is still found: what is trained is not hidden by a node more
    assert training_losses.training_losses(output, batch["labels"], None) is not None
    output["loss"] = output["loss"].detach()
    assert training_losses.training_losses(output, batch["labels"], None) is None


class AddsToIt(CoresetTrainer):
    """What only adds to the parent's loss goes through ours."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        return super().compute_loss(model, inputs, *args, **kwargs)


def test_a_method_that_goes_through_ours_leaves_it_known(tmp_path):
    args = {"args": arguments(tmp_path), "train_dataset": mixture(), "data_collator": Collator(), "model": tiny_model()}
    run(AddsToIt(coreset=CoresetConfig(selector="cube"), **args))
    assert all(line["loss_by_source"] for line in lines(tmp_path))


# ---- when ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "coreset, source, told",
    [
        ({}, True, True),
        ({}, False, False),
        ({"loss_by_source": True}, False, True),
        ({"loss_by_source": False}, True, False),
        ({"pool_factor": 1, "micro_batches": "length"}, True, True),
    ],
)
def test_auto_is_where_there_are_several_sources(tmp_path, coreset, source, told):
    run(trainer(tmp_path, coreset=CoresetConfig(**coreset), train_dataset=mixture(source=source), max_steps=2))
    assert all(("loss_by_source" in line) == told for line in lines(tmp_path))


def test_with_pool_factor_1_it_takes_part_only_where_it_is_asked_for():
    assert not CoresetConfig(pool_factor=1).takes_part
    assert not CoresetConfig(pool_factor=1, loss_by_source=False).takes_part
    assert CoresetConfig(pool_factor=1, loss_by_source=True).takes_part
    with pytest.raises(ConfigError, match=r"loss_by_source should be true, false or auto. Found 'yes'"):
        CoresetConfig(loss_by_source="yes")


def test_what_others_read_of_a_step_is_the_same_as_what_is_written(tmp_path):
    read = []

    class Reads(TrainerCallback):
        def on_step_end(self, *_, **__):
            read.append((dict(made._run.step.losses.by_source), made._run.method.source_names))

    made = trainer(tmp_path, coreset=CoresetConfig(), extra={"callbacks": [Reads()]})
    run(made)
    for (by_source, names), line in zip(read, lines(tmp_path), strict=True):
        found = {names[source]: loss / tokens for source, (loss, tokens) in by_source.items()}
        assert found == pytest.approx(line["loss_by_source"])
        assert {names[s]: tokens for s, (_, tokens) in by_source.items()} == pytest.approx(line["loss_tokens"])
