"""The plug-in for ms-swift, over stand-ins for the host's modules."""

from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer

from corebatch.errors import ConfigError
from stand_ins import as_written_in
from training import Collator, mixture, run, same, tiny_model, trainer, weights


class Seq2SeqTrainer(Trainer):
    """As the host's: a loader that can begin later, and batches that hold what its own compute_loss looks for."""

    def __init__(self, model, args, template, train_dataset, **kwargs):
        super().__init__(model=model, args=args, train_dataset=train_dataset, **kwargs)
        self.template, self.asked = template, []

    def get_train_dataloader(self, skip_batches=0):
        self.asked.append(skip_batches)
        return super().get_train_dataloader()

    def get_use_logits_to_keep(self, default_value=True):
        return default_value

    def _prepare_inputs(self, inputs):
        return {**super()._prepare_inputs(inputs), "compute_loss_func": None}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs.pop("channel", None)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


as_written_in(Seq2SeqTrainer, "compute_loss", "swift.trainers.seq2seq_trainer")


class Rows(torch.utils.data.Dataset):
    """Rows that are made when they are asked for; where one cannot be, the host gives another."""

    n_try_fetch = 10

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return dict(self.dataset[index])


@pytest.fixture
def factory():
    usual = lambda args: ("arguments of", args)  # noqa: E731
    return SimpleNamespace(TRAINER_MAPPING={"causal_lm": "swift.trainers.Seq2SeqTrainer"}, get_training_args=usual)


@pytest.fixture
def module(stand_in, factory):
    names = {"Seq2SeqTrainer": Seq2SeqTrainer, "TrainerFactory": factory}
    return stand_in("corebatch.integrations.swift", swift__trainers=names)


def test_the_host_finds_our_class(module, factory):
    module.use_coresets(pool_factor=4)
    assert factory.TRAINER_MAPPING["causal_lm"] == "corebatch.integrations.swift.CoresetSwiftTrainer"
    settings = module.CoresetSwiftTrainer.settings
    assert (settings.pool_factor, settings.source_column) == (4, "channel")
    args = SimpleNamespace(packing=False, loss_scale="default", truncation_strategy="delete")
    assert factory.get_training_args(args) == ("arguments of", args)


def test_every_option_is_refused_by_its_key(module, factory):
    module.use_coresets()
    values = {"task_type": "embedding", "truncation_strategy": "split", "loss_scale": "react"}
    for option in module.OPTIONS:
        with pytest.raises(ConfigError, match=rf"{option.key} of ms-swift does not go with"):
            factory.get_training_args(SimpleNamespace(**{option.key: values.get(option.key, 2)}))
    factory.get_training_args(SimpleNamespace(loss_scale="last_round+ignore_empty_think", task_type="causal_lm"))


def test_without_a_part_in_it_the_host_is_as_it_was(module, factory):
    usual = factory.get_training_args
    module.use_coresets(pool_factor=1)
    assert factory.TRAINER_MAPPING == {"causal_lm": "swift.trainers.Seq2SeqTrainer"}
    assert factory.get_training_args is usual
    with pytest.raises(ConfigError, match=r"Found 'pool_faktor'"):
        module.use_coresets(pool_faktor=2)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("channel", [True, False])
def test_the_host_s_trainer_trains_as_ours(module, tmp_path, channel):
    module.use_coresets(pool_factor=4)
    column = "source" if channel else "none"
    ours = trainer(tmp_path / "a", tiny_model(), module.CoresetSwiftTrainer.settings.changed(source_column=column))
    rows = mixture().rename_column("source", "channel") if channel else mixture(source=False)
    data = Rows(rows)
    made = module.CoresetSwiftTrainer(tiny_model(), ours.args, None, data, data_collator=Collator())
    assert data.n_try_fetch == 1
    assert not made.get_use_logits_to_keep()
    assert same(weights(run(made)), weights(run(ours)))
    assert not made._run.weights.owned
    made.get_train_dataloader(skip_batches=3)
    assert made.asked == [0, 3]
    assert len(made._run.method.source_names) == (4 if channel else 1)
