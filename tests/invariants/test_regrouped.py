"""pool_factor 1 with micro_batches: rows are put together anew, and the update is the plain Trainer's."""

import json

import pytest
import torch
from torch import nn

from corebatch.errors import ConfigError, CorebatchError, DataError, LossMismatchError
from corebatch.trainer import CoresetConfig, CoresetTrainer
from training import BY_LENGTH, Collator, largest_difference, mixture, run, same, tiny_model, trainer, weights

BY = ("length", "positions", "flops")
TIMED = ("ms", "memory_mb", "mfu", "seconds")
CHECKPOINTING = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}


class LeftCollator(Collator):
    """Pads on the left."""

    def __call__(self, rows):
        batch = super().__call__(rows)
        shifts = (batch["attention_mask"] == 0).sum(dim=1).tolist()
        return {
            key: torch.stack([v.roll(n) for v, n in zip(value, shifts, strict=True)]) for key, value in batch.items()
        }


def regrouped(by="positions", **settings):
    return CoresetConfig(pool_factor=1, micro_batches=by, **settings)


def both(folder, coreset, *, kind="llama", lora=False, dtype=torch.float64, **settings):
    """The plain Trainer and ours, trained: 100 rows, 11 micro-batches of 3 in 4 at a time and a last one of 1."""
    settings = {
        "per_device_train_batch_size": 3, "gradient_accumulation_steps": 4, "max_steps": 20, "learning_rate": 2e-2,
        "optim": "sgd", "train_dataset": mixture(100), **settings,
    }  # fmt: skip
    made = []
    for plain in (True, False):
        model = tiny_model(kind, lora=lora, dtype=dtype)
        made.append(run(trainer(folder / str(plain), model, coreset, plain=plain, **settings)))
    return made


def distance(one, other):
    """Of all weights together, relative to how far the first were moved at all."""
    return largest_difference(weights(one), weights(other)) / max(float(w.abs().max()) for w in weights(one).values())


def lines(folder):
    return [json.loads(line) for line in (folder / "selection.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "by, settings",
    [
        *((by, {}) for by in BY),
        ("positions", {"lora": True}),
        ("flops", {"kind": "gpt2", "optim": "adamw_torch", "learning_rate": 1e-3, "adam_epsilon": 1e-3}),
        ("positions", {"data_collator": LeftCollator()}),
        ("positions", BY_LENGTH),
        ("length", {"dataloader_drop_last": True}),
        ("positions", {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}),
        ("positions", {**CHECKPOINTING, "lora": True}),
        ("length", {"accelerator_config": {"use_seedable_sampler": False}}),
    ],
    ids=[*BY, "lora", "gpt2_adamw", "left", "by_length", "drop_last", "one", "checkpointing", "global_sampler"],
)
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_twenty_steps_in_float64_are_the_plain_trainer_s(tmp_path, by, settings):
    plain, ours = both(tmp_path, regrouped(by), **settings)
    assert plain.state.global_step == ours.state.global_step == 20
    assert plain.state.epoch == ours.state.epoch
    # Rotary angles are in float32 whatever the model: padding on the left shifts them, and rounds them otherwise.
    left = "data_collator" in settings
    assert distance(plain, ours) < (1e-9 if left else 1e-12)
    for one, other in zip(plain.state.log_history[:-1], ours.state.log_history[:-1], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)  # transformers computes it in float32
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-7 if left else 1e-10)
        assert other["learning_rate"] == one["learning_rate"]


def test_twenty_steps_in_float32(tmp_path):
    plain, ours = both(tmp_path, regrouped(), dtype=torch.float32)
    assert distance(plain, ours) < 1e-6


def test_two_epochs_with_a_short_last_step(tmp_path):
    """34 micro-batches an epoch, 4 a step: the last step of each epoch has two, the last micro-batch one row."""
    plain, ours = both(tmp_path, regrouped(), max_steps=-1, num_train_epochs=2)
    assert plain.state.global_step == ours.state.global_step == 18
    assert distance(plain, ours) < 1e-12
    trained = [line["chosen_examples"] for line in lines(tmp_path / "False")]
    assert trained == [12] * 8 + [4] + [12] * 8 + [4]
    assert sum(trained[:9]) == 100


def test_rows_of_like_length_meet(tmp_path):
    _, ours = both(tmp_path, regrouped("length"), max_steps=4)
    for line in lines(tmp_path / "False"):
        assert line["examples_scored"] == 0
        assert line["chosen"] == line["drawn"]
        assert line["weight_max"] == 1
        assert line["padding_trained"] < 0.16  # as the loader makes them about a third
    assert not any("pool_loss" in line for line in ours.state.log_history)


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


@pytest.mark.parametrize("rows, steps", [(100, 5), (32, 7)], ids=["long", "ends"])
def test_a_stream(tmp_path, rows, steps):
    """Where a stream ends within a step, the plain Trainer's gradients wait for the next step: so do ours."""
    plain, ours = both(tmp_path, regrouped(), train_dataset=Stream(list(mixture(rows))), max_steps=steps)
    assert plain.state.global_step == ours.state.global_step
    assert distance(plain, ours) < 1e-12


@pytest.mark.parametrize("sampler", [{}, BY_LENGTH], ids=["random", "by_length"])
@pytest.mark.parametrize("step", [2, 5, 8])
def test_resumed_is_uninterrupted(tmp_path, step, sampler):
    settings = {"max_steps": 11, "save_strategy": "steps", "save_steps": 1, "train_dataset": mixture(40), **sampler}
    found = []
    for resume in (None, str(tmp_path / f"checkpoint-{step}")):
        again = trainer(tmp_path, tiny_model(dropout=0.1), regrouped(), **settings)  # 5 steps an epoch
        run(again, resume_from_checkpoint=resume)
        found.append((weights(again), [{k: v for k, v in line.items() if k not in TIMED} for line in lines(tmp_path)]))
    assert same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_the_cut_may_change_on_the_way(tmp_path):
    """As the error of memory that ran out advises: the update is the same."""
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "optim": "sgd"}
    model = {"lora": False, "dtype": torch.float64}
    whole = run(trainer(tmp_path, tiny_model(**model), regrouped("length"), **settings))
    other = trainer(tmp_path, tiny_model(**model), regrouped({"by": "positions", "most": 40}), **settings)
    run(other, resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert distance(whole, other) < 1e-12


def test_nothing_of_a_choice_is_run(tmp_path, monkeypatch):
    """Whatever the settings of a choice say: no scoring forward, no memory, no hooks, no carried errors."""
    coreset = regrouped(selector="balanced", feedback=0.9, scoring="remembered")
    plain, ours = both(tmp_path, coreset, max_steps=6)
    assert ours._run.scoring.memory is None
    assert ours._run.scoring.trained is None
    assert ours._run.method.feedback is None
    assert distance(plain, ours) < 1e-12
    for line in lines(tmp_path / "False"):
        assert line["scoring"] == "none"
        assert line["kept"] == []
        assert "carried" not in line


# ---- micro-batches in parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("by, most", [("positions", 24), ("positions", 40), ("flops", 30)])
def test_parts_of_a_micro_batch_train_the_same_update(tmp_path, monkeypatch, by, most):
    """More micro-batches than the loop trains: each of the loop's has further ones with it."""
    kind, sizes = type(tiny_model(lora=False).model), []
    forward = kind.forward

    def watched(self, input_ids, *args, **kwargs):
        sizes.extend([input_ids.numel()] * self.training)
        return forward(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", watched)
    plain, ours = both(tmp_path, regrouped({"by": by, "most": most}), include_num_input_tokens_seen=False)
    assert distance(plain, ours) < 1e-12
    sizes = sizes[76 + 1 :]  # the plain Trainer's: 34 in each of two epochs, and two steps of 4; and one of a check
    assert len(sizes) > 76
    assert max(sizes) <= most
    written = lines(tmp_path / "False")
    assert sum(line["positions_trained"] for line in written) == sum(sizes)
    assert max(line["largest_micro_batch"] for line in written) <= most
    for one, other in zip(plain.state.log_history[:-1], ours.state.log_history[:-1], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)


@pytest.mark.parametrize("selector", ["importance", "random"])
def test_parts_with_a_choice(tmp_path, selector):
    """Fewer rows than parts, too: then some stand with weight 0."""
    found = []
    for most in (None, 40, 20):
        cut = {"by": "positions", "most": most}
        coreset = CoresetConfig(pool_factor=2, scorer="tokens", selector=selector, micro_batches=cut)
        found.append(run(trainer(tmp_path / str(most), tiny_model(dtype=torch.float64), coreset, optim="sgd")))
    chosen = [[line["chosen"] for line in lines(tmp_path / str(most))] for most in (None, 40, 20)]
    assert chosen[0] == chosen[1] == chosen[2]
    # transformers' own loss is in float32 whatever the model, ours is not
    bound = 1e-5 if selector == "random" else 1e-12
    assert distance(*found[:2]) < bound
    assert distance(found[0], found[2]) < bound


def test_a_row_above_the_cap_is_named(tmp_path):
    with pytest.raises(
        DataError, match=r"micro_batches.most.*example \d+ of the train set alone has 1\d, of 1\d tokens"
    ):
        run(trainer(tmp_path, tiny_model(), regrouped({"by": "positions", "most": 9})))


# ---- what is refused, by name ---------------------------------------------------------------------------------------


def test_settings_that_every_row_leaves_no_room_for():
    with pytest.raises(ConfigError, match=r"track_error.*pool_factor 1\. Found 3"):
        regrouped(track_error=3)
    CoresetConfig(pool_factor=1, track_error=3)  # the plain Trainer's step, as before
    CoresetConfig(pool_factor=2, track_error=3)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor 0.1.*micro_batches plain"),
        ({"extra": {"compute_loss_func": lambda *_, **__: 0}}, "compute_loss_func.*micro_batches plain"),
    ],
)
def test_settings_whose_loss_is_no_sum(tmp_path, settings, message):
    with pytest.raises(LossMismatchError, match=message) as raised:
        trainer(tmp_path, coreset=regrouped(), **settings)
    assert "set pool_factor to 1" not in str(raised.value)


class Normed(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.norm = inner, nn.BatchNorm1d(16)

    def forward(self, *args, **kwargs):
        return self.norm(self.inner(*args, **kwargs).transpose(1, 2)).transpose(1, 2)


def test_batch_normalization_is_refused(tmp_path):
    for coreset in (regrouped(), CoresetConfig()):
        model = tiny_model(lora=False)
        model.model.layers[0].mlp = Normed(model.model.layers[0].mlp)
        with pytest.raises(LossMismatchError, match=r"batch normalization.*layers.0.mlp.norm: BatchNorm1d"):
            trainer(tmp_path, model, coreset)


def test_a_loss_of_each_micro_batch_is_refused(tmp_path):
    model = tiny_model(lora=False)
    made = trainer(tmp_path, model, regrouped())
    made.model_accepts_loss_kwargs = False
    before = weights(made)
    with pytest.raises(LossMismatchError, match=r"num_items_in_batch.*LlamaForCausalLM.*micro_batches to plain"):
        run(made)
    assert same(before, weights(made))


def test_a_term_that_is_added_is_refused(tmp_path):
    model = tiny_model(lora=False)
    original = model.loss_function

    def with_a_term(*args, **kwargs):
        return original(*args, **kwargs) + 0.01

    model.loss_function = with_a_term
    made = trainer(tmp_path, model, regrouped())
    with pytest.raises(LossMismatchError, match=r"micro_batches 'positions' with pool_factor 1.*something is added"):
        run(made)


def test_a_mean_over_the_micro_batch_is_refused(tmp_path):
    model = tiny_model(lora=False)
    original = model.loss_function

    def mean(*args, num_items_in_batch=None, **kwargs):
        return torch.nan_to_num(original(*args, **kwargs))

    model.loss_function = mean
    with pytest.raises(LossMismatchError, match=r"a sum over rows.*together"):
        run(trainer(tmp_path, model, regrouped()))


def test_positions_that_count_from_the_padding_are_refused(tmp_path):
    """GPT-2 counts its learnt positions from the first one of the batch, padding or not."""
    with pytest.raises(LossMismatchError, match=r"GPT2LMHeadModel.*on the left"):
        both(tmp_path, regrouped(), kind="gpt2", data_collator=LeftCollator())


def test_first_tokens_behind_padding_are_refused(tmp_path):
    rows = mixture(100).map(lambda row: {"labels": row["input_ids"]})
    with pytest.raises(DataError, match=r"first token is trained.*examples.*Pad on the right"):
        both(tmp_path, regrouped(), train_dataset=rows, data_collator=LeftCollator())
    plain, ours = both(tmp_path, regrouped(), train_dataset=rows)
    assert distance(plain, ours) < 1e-12


class Own(CoresetTrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        return super().compute_loss(model, inputs, *args, **kwargs)


def test_a_compute_loss_of_one_s_own_goes_through_ours(tmp_path):
    plain, _ = both(tmp_path, regrouped(), max_steps=4)
    found = trainer(
        tmp_path / "own", tiny_model(lora=False, dtype=torch.float64), plain=True, max_steps=4, optim="sgd",
        per_device_train_batch_size=3, gradient_accumulation_steps=4, learning_rate=2e-2, train_dataset=mixture(100),
    )  # fmt: skip
    own = Own(
        model=found.model, args=found.args, train_dataset=found.train_dataset, data_collator=Collator(),
        coreset=regrouped(),
    )  # fmt: skip
    assert distance(plain, run(own)) < 1e-12


class Mean(CoresetTrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        return model(**inputs).loss


def test_a_compute_loss_that_takes_no_weights_is_refused(tmp_path):
    made = trainer(tmp_path, plain=True)
    made = Mean(
        model=made.model, args=made.args, train_dataset=mixture(), data_collator=Collator(), coreset=regrouped()
    )
    with pytest.raises(LossMismatchError, match=r"Mean.compute_loss.*it does not take them.*micro_batches plain"):
        run(made)


class InParts(CoresetTrainer):
    def training_step(self, model, inputs, *args, **kwargs):
        return super().training_step(model, inputs, *args, **kwargs)


def test_a_training_step_of_one_s_own_does_not_go_with_parts(tmp_path):
    made = trainer(tmp_path, plain=True)
    common = {"model": made.model, "args": made.args, "train_dataset": mixture(), "data_collator": Collator()}
    with pytest.raises(ConfigError, match=r"micro_batches.most.*InParts.training_step.*Leave `most` out"):
        InParts(**common, coreset=regrouped({"by": "positions", "most": 100}))
    with pytest.raises(ConfigError, match=r"Own.compute_loss.*micro_batches.most 100"):
        run(Own(**common, coreset=regrouped({"by": "positions", "most": 100})))


def test_optimizers_in_backward_do_not_go_with_parts(tmp_path):
    model = tiny_model(lora=False)
    model.lm_head.weight.register_post_accumulate_grad_hook(lambda _: None)
    with pytest.raises(ConfigError, match=r"micro_batches.most.*a hook on the gradient of.*updates weights inside"):
        trainer(tmp_path, model, regrouped({"by": "positions", "most": 100}))


def test_memory_that_runs_out_names_the_key(tmp_path, monkeypatch):
    made = trainer(tmp_path, tiny_model(), regrouped())
    kind = type(made.model.base_model.model.model.layers[0])
    forward = kind.forward

    def full(self, *args, **kwargs):
        if made.state.global_step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", full)
    told = r"CUDA out of memory.*micro-batch of \d+ x \d+ = \d+ positions: set coreset.micro_batches to {by: pos"
    with pytest.raises(torch.OutOfMemoryError, match=told) as raised:
        run(made)
    assert isinstance(raised.value, CorebatchError)
    assert made.state.global_step == 1
