"""The launcher for LLaMA-Factory, over stand-ins for the host's modules."""

from types import SimpleNamespace

import pytest
from datasets import Dataset, concatenate_datasets
from transformers import Trainer

from corebatch.errors import ConfigError, DataError
from corebatch.trainer import CoresetConfig, CoresetMixin
from stand_ins import as_written_in
from training import Collator, mixture, run, same, tiny_model, trainer, weights

FILES = {"algebra": 6, "shapes": 2}


class CustomSeq2SeqTrainer(Trainer):
    """Hands on, as the host's."""

    def __init__(self, finetuning_args, processor, **kwargs):
        super().__init__(**kwargs)
        self.finetuning_args = finetuning_args

    def compute_loss(self, model, inputs, *args, **kwargs):
        return super().compute_loss(model, inputs, *args, **kwargs)


as_written_in(CustomSeq2SeqTrainer, "compute_loss", "llamafactory.train.sft.trainer")


class Host:
    """The host's modules; a run keeps what was asked, the class that would train, and the rows."""

    def __init__(self, stand_in):
        self.workflow = SimpleNamespace(CustomSeq2SeqTrainer=CustomSeq2SeqTrainer)
        self.loader = SimpleNamespace(
            get_dataset_list=lambda names, folder: [SimpleNamespace(rows=FILES[name]) for name in names],
            align_dataset=lambda dataset, attr, *args: dataset.map(
                lambda row: {"prompt": row["text"]}, remove_columns="text"
            ),
            _get_preprocessed_dataset=lambda dataset, *args, is_eval=False: dataset.map(
                lambda row: {"input_ids": [len(row["prompt"])]}, remove_columns=dataset.column_names
            ),
        )
        self.own = {}
        self.module = stand_in(
            "corebatch.integrations.llamafactory",
            llamafactory__train__tuner={"run_exp": self.run},
            llamafactory__train__sft={"workflow": self.workflow},
            llamafactory__data={"loader": self.loader},
            llamafactory__hparams={"read_args": lambda: self.args},
        )

    def run(self, args):
        self.asked, self.kind = args, self.workflow.CustomSeq2SeqTrainer
        parts = []
        for attr in self.loader.get_dataset_list(list(FILES), "data"):
            raw = Dataset.from_dict({"text": ["a"] * attr.rows, **{k: v[: attr.rows] for k, v in self.own.items()}})
            parts.append(self.loader.align_dataset(raw, attr, None, None))
        self.rows = self.loader._get_preprocessed_dataset(concatenate_datasets(parts), None, is_eval=False)
        self.eval_rows = self.loader._get_preprocessed_dataset(concatenate_datasets(parts), None, is_eval=True)


@pytest.fixture
def host(stand_in):
    return Host(stand_in)


def test_the_class_is_swapped_while_it_trains_and_rows_keep_their_sources(host):
    host.args = {"stage": "sft", "coreset": {"pool_factor": 4}}
    host.module.main()
    assert host.asked == {"stage": "sft"}
    assert issubclass(host.kind, CoresetMixin)
    assert host.rows.column_names == ["input_ids", "source"]
    assert host.rows["source"][:] == ["algebra"] * 6 + ["shapes"] * 2
    assert host.eval_rows.column_names == ["input_ids"]
    assert host.workflow.CustomSeq2SeqTrainer is CustomSeq2SeqTrainer
    assert host.loader.get_dataset_list(["shapes"], "data")[0].__dict__ == {"rows": 2}


def test_rows_own_column_wins_over_the_data_set_s_name(host):
    host.own = {"domain": ["x", "y"] * 3}
    host.module.train({"coreset": {"source_column": "domain"}})
    assert sorted(host.rows["domain"][:]) == ["x"] * 4 + ["y"] * 4


@pytest.mark.parametrize("coreset", [{"pool_factor": 1}, {"source_column": "none"}])
def test_what_is_not_asked_for_stays_as_it_was(host, coreset):
    host.module.train({"coreset": coreset})
    assert (host.kind is CustomSeq2SeqTrainer) == (coreset == {"pool_factor": 1})
    assert host.rows.column_names == ["input_ids"]


def test_every_option_is_refused_by_its_key(host):
    for option in host.module.OPTIONS:
        value = "dpo" if option.key == "stage" else True
        with pytest.raises(ConfigError, match=rf"{option.key} of LLaMA-Factory does not go with"):
            host.module.train({option.key: value})
    host.module.train({"stage": "sft", "packing": False})


def test_bad_input_is_named(host):
    with pytest.raises(ConfigError, match=r"Found 'pool_faktor'"):
        host.module.train({"coreset": {"pool_faktor": 2}})
    host.args = ["--stage", "sft"]
    with pytest.raises(ConfigError, match=r"YAML or JSON file"):
        host.module.main()
    kind = host.module.trainer_class(CustomSeq2SeqTrainer, CoresetConfig())
    with pytest.raises(ConfigError, match=r"Found a model with a SimpleNamespace"):
        kind(processor=SimpleNamespace())
    with pytest.raises(DataError, match=r"column 'source'.*Found input_ids.*tokenized_path"):
        kind(train_dataset=Dataset.from_dict({"input_ids": [[1]]}))


@pytest.mark.usefixtures("one_thread")
def test_the_host_s_trainer_trains_as_ours(host, tmp_path):
    kind = host.module.trainer_class(CustomSeq2SeqTrainer, CoresetConfig(pool_factor=4))
    ours = trainer(tmp_path / "a", tiny_model(), CoresetConfig(pool_factor=4))
    expected = weights(run(trainer(tmp_path / "b", tiny_model(), CoresetConfig(pool_factor=4))))
    made = kind(
        finetuning_args=None, processor=None, model=tiny_model(), args=ours.args, train_dataset=mixture(),
        data_collator=Collator(),
    )  # fmt: skip
    assert same(weights(run(made)), expected)
    assert not made._run.weights.owned
