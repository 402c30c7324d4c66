"""The seam: what corebatch overrides on the Trainer is as it expects, and the loop sees what it asked for."""

import inspect

import pytest
import torch
from transformers import Trainer

from corebatch.trainer import CoresetConfig, CoresetMixin
from training import mixture, run, tiny_model, trainer


@pytest.mark.parametrize(
    "name, first",
    [
        ("get_train_dataloader", ["self"]),
        ("get_batch_samples", ["self", "epoch_iterator", "num_batches", "device"]),
        ("compute_loss", ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]),
        ("training_step", ["self", "model", "inputs", "num_items_in_batch"]),
        ("create_optimizer", ["self"]),
        ("create_scheduler", ["self", "num_training_steps", "optimizer"]),
        ("log", ["self", "logs", "start_time"]),
        ("train", ["self", "resume_from_checkpoint"]),
        ("_set_signature_columns_if_needed", ["self"]),
        ("_get_train_sampler", ["self", "train_dataset"]),
        ("_save_checkpoint", ["self", "model", "trial"]),
        ("_load_callback_state", ["self"]),
        ("save_model", ["self", "output_dir", "_internal_call"]),
        ("_get_output_dir", ["self", "trial"]),
        ("_push_from_checkpoint", ["self", "checkpoint_folder"]),
        ("_hp_search_setup", ["self", "trial"]),
        ("_load_from_checkpoint", ["self", "resume_from_checkpoint"]),
        ("call_model_init", ["self", "trial"]),
        ("_remove_unused_columns", ["self", "dataset", "description"]),
    ],
)
def test_the_overridden_methods_have_the_shape_that_we_expect(name, first):
    parameters = list(inspect.signature(getattr(Trainer, name)).parameters)
    assert parameters[: len(first)] == first


def test_the_loop_takes_samples_before_it_trains_and_drops_an_epoch_that_gives_none():
    source = inspect.getsource(Trainer)
    assert source.index("self.get_batch_samples(epoch_iterator, num_batches") < source.index(
        "self.training_step(model, inputs, num_items_in_batch)"
    )


def test_the_mixin_overrides_nothing_else_of_the_trainer():
    parts = [vars(kind) for kind in CoresetMixin.__mro__ if kind is not object]
    own = {name for part in parts for name, value in part.items() if inspect.isfunction(value)}
    assert own & set(dir(Trainer)) == {
        "__init__", "get_train_dataloader", "get_batch_samples", "compute_loss", "log", "train", "_get_train_sampler",
        "_save_checkpoint", "save_model", "training_step", "_hp_search_setup", "_load_from_checkpoint",
        "_load_callback_state", "create_optimizer", "create_scheduler",
    }  # fmt: skip


def test_what_is_held_back_while_the_trainer_saves_is_what_it_asks_for():
    source = inspect.getsource(Trainer._save_checkpoint)
    assert "self.save_model(output_dir, _internal_call=True)" in source
    assert "if self.args.push_to_hub:" in source
    rotation = source + inspect.getsource(getattr(Trainer, "_rotate_checkpoints", Trainer._save_checkpoint))
    assert "self.args.save_total_limit" in rotation


@pytest.mark.parametrize("count", [96, 70, 5, 1])
@pytest.mark.parametrize("selector", ["pivotal", "random", "facility_location"])
@pytest.mark.parametrize("cut", ["length", "positions"])
def test_every_step_gets_as_many_micro_batches_as_it_asked_for(tmp_path, count, selector, cut, monkeypatch):
    made = trainer(
        tmp_path,
        tiny_model(),
        CoresetConfig(selector=selector, pool_factor=4, micro_batches=cut),
        train_dataset=mixture(count),
        max_steps=-1,
        num_train_epochs=2,
        gradient_accumulation_steps=3,
        per_device_train_batch_size=2,
    )
    asked, given = [], []
    original, stepped = type(made).get_batch_samples, Trainer.training_step

    def watched(self, iterator, number, *args):
        batches, items = original(self, iterator, number, *args)
        asked.append(number)
        given.append(batches)
        return batches, items

    trained = []

    def training_step(self, model, inputs, items=None):
        trained.append(len(inputs["input_ids"]))
        return stepped(self, model, inputs, items)

    monkeypatch.setattr(type(made), "get_batch_samples", watched)
    monkeypatch.setattr(Trainer, "training_step", training_step)
    run(made)
    assert [len(batches) for batches in given] == asked
    assert len(trained) == sum(asked)
    assert all(rows >= 1 and (rows <= 2 or cut == "positions") for rows in trained)  # positions are even, not rows
    assert len(asked) == 2 * -(-count // (2 * 4 * 3)) == made.state.global_step
    seen = sum(
        int((b["loss_weights"] > 0).sum()) if "loss_weights" in b else len(b["labels"]) for g in given for b in g
    )
    assert seen >= 2 * -(-count // 4)


def test_weights_of_one_give_the_plain_loss_and_gradient(tmp_path):
    made = trainer(tmp_path, tiny_model(lora=False))
    batch = made.data_collator.collator([mixture(6)[i] for i in range(6)])
    items = (batch["labels"][:, 1:] != -100).sum()
    results = []
    for weights in (None, torch.ones(6)):
        made.model.zero_grad()
        inputs = dict(batch) if weights is None else {**batch, "loss_weights": weights}
        loss = made.compute_loss(made.model, inputs, num_items_in_batch=items)
        loss.backward()
        results.append((loss.detach(), [p.grad.clone() for p in made.model.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-7)


def test_training_the_small_batch_saves_no_more_than_plain_training_on_it(tmp_path):
    """Bytes of tensors kept for the backward pass, weighted and plain."""
    made = trainer(tmp_path, tiny_model())
    batch = made.data_collator.collator([mixture(8)[i] for i in range(8)])
    kept = []
    for weights in (None, torch.ones(8)):
        inputs = dict(batch) if weights is None else {**batch, "loss_weights": weights}
        seen: dict[int, int] = {}

        def pack(tensor, seen=seen):
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            made.compute_loss(made.model, inputs, num_items_in_batch=torch.tensor(20))
        kept.append(sum(seen.values()))
    assert kept[1] <= kept[0]
