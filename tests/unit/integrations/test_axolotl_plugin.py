"""The plug-in for Axolotl, over stand-ins for the host's modules."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset
from transformers import Trainer

from corebatch.errors import ConfigError, DataError, LossMismatchError
from corebatch.trainer import CoresetConfig, CoresetMixin
from stand_ins import as_written_in
from training import Collator, mixture, run, same, tiny_model, trainer, weights

FILES = {"sets/algebra.jsonl": 24, "sets/shapes.jsonl": 8}


class Settings(dict):
    """The host's: keys are attributes too, and those that are not there are None."""

    __getattr__ = dict.get
    __setattr__ = dict.__setitem__


def settings(**more):
    usual = {
        "datasets": [Settings(path=path) for path in FILES],
        "coreset": {"pool_factor": 2},
        "batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_epochs": 2.0,
    }
    return Settings({**usual, **more})


def get_dataset_wrapper(dataset_config, dataset, **_):
    return Dataset.from_dict({"input_ids": [[1]] * len(dataset)}), None


class AxolotlTrainer(Trainer):
    """Counts tokens in `compute_loss`, as the host's, and hands on."""

    counted = 0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.counted += int((inputs["labels"] != -100).sum())
        return super().compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)


as_written_in(AxolotlTrainer, "compute_loss", "axolotl.core.trainers.base")


class Host:
    """The host's modules, with what a test may change."""

    def __init__(self, stand_in):
        self.plugins, self.pad, self.prepared = {}, 0, None
        manager = SimpleNamespace(get_instance=lambda: SimpleNamespace(plugins=self.plugins))
        self.sft = SimpleNamespace(
            get_dataset_wrapper=get_dataset_wrapper,
            generate_dataset_hash_from_config=lambda cfg, cfg_datasets, tokenizer_name: "hash",
        )
        self.module = stand_in(
            "corebatch.integrations.axolotl",
            axolotl__integrations__base={"BasePlugin": object, "PluginManager": manager},
            axolotl__common__datasets={"load_datasets": self.load},
            axolotl__loaders={"load_tokenizer": lambda cfg: SimpleNamespace(pad_token_id=self.pad)},
            axolotl__utils__data={"sft": self.sft},
            axolotl__core__trainers={"AxolotlTrainer": AxolotlTrainer},
        )
        self.plugin = self.module.CorebatchPlugin()

    def load(self, cfg):
        """As the host: rows of every data set become tokens, under a hash of the settings."""
        self.hash = self.sft.generate_dataset_hash_from_config(cfg, cfg.datasets, "tokenizer")
        parts = [
            self.sft.get_dataset_wrapper(dataset_config=entry, dataset=Dataset.from_dict({"text": ["a"] * count}))[0]
            for entry, count in zip(cfg.datasets, FILES.values(), strict=True)
        ]
        rows = {key: [value for part in parts for value in part[key]] for key in parts[0].column_names}
        made = Dataset.from_dict(rows) if self.prepared is None else self.prepared
        return SimpleNamespace(train_dataset=made, eval_dataset=None, total_num_steps=16)


@pytest.fixture
def host(stand_in, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in map(Path, FILES):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return Host(stand_in)


def registered(host, **more):
    cfg = settings(**more)
    host.plugin.register(cfg)
    return cfg


def test_rows_keep_their_sources_and_steps_are_those_of_pools(host):
    cfg = registered(host)
    made = host.plugin.load_datasets(cfg)
    assert made.train_dataset["source"][:] == ["algebra"] * 24 + ["shapes"] * 8
    assert made.total_num_steps == 8  # 2 passes over 32 rows, 8 at a time
    assert host.hash.startswith("hash-")
    assert host.sft.get_dataset_wrapper is get_dataset_wrapper
    assert host.sft.generate_dataset_hash_from_config(cfg, [], "") == "hash"


def test_a_data_set_may_be_given_a_source_which_the_host_drops_on_the_way(host):
    first = registered(host)
    host.plugin.load_datasets(first)
    before = host.hash
    registered(host, datasets=[Settings(path="sets/algebra.jsonl", source="mine"), Settings(path="sets/shapes.jsonl")])
    made = host.plugin.load_datasets(settings())
    assert set(made.train_dataset["source"][:]) == {"mine", "shapes"}
    assert host.hash != before  # rows that were prepared under other names are not taken


@pytest.mark.parametrize("column", ["domain", "none"])
def test_the_column_of_sources_is_the_one_of_coreset(host, column):
    cfg = registered(host, coreset={"source_column": column})
    assert host.plugin.load_datasets(cfg).train_dataset.column_names == ["input_ids", *([column] * (column != "none"))]


def test_rows_that_were_prepared_without_sources(host):
    cfg = registered(host)
    host.prepared = Dataset.from_dict({"input_ids": [[1]]})
    with pytest.raises(DataError, match=r"column 'source'.*Found input_ids.*dataset_prepared_path"):
        host.plugin.load_datasets(cfg)
    assert host.sft.get_dataset_wrapper is get_dataset_wrapper


def test_a_hub_s_data_set_is_called_by_its_name(host):
    assert host.module.entry_name({"path": "openai/gsm8k", "name": "main"}) == "openai/gsm8k/main"
    assert host.module.entry_name({"path": __file__}) == "test_axolotl_plugin.py"


@pytest.mark.parametrize(
    "more, steps", [({"max_steps": 3}, 3), ({"max_steps": 99}, 8), ({"coreset": {"by_length": {}}}, None)]
)
def test_steps_of_a_run(host, more, steps):
    assert host.plugin.load_datasets(registered(host, **more)).total_num_steps == steps
    assert host.plugin.load_datasets(registered(host, **more), preprocess=True).total_num_steps == 16


def test_every_option_is_refused_by_its_key(host):
    values = {"remove_unused_columns": False, "model_config_type": "mamba"}
    for option in host.module.OPTIONS:
        found = values.get(option.key, 2)
        with pytest.raises(
            ConfigError, match=rf"{option.key} of Axolotl does not go with.*Found {option.key}: {found!r}"
        ):
            registered(host, **{option.key: found})
    registered(
        host, sample_packing=False, remove_unused_columns=True, context_parallel_size=1, model_config_type="llama"
    )


def test_what_the_host_makes_of_its_settings_is_looked_at_too(host):
    cfg = registered(host)
    cfg.batch_flattening = True
    with pytest.raises(ConfigError, match=r"batch_flattening of Axolotl"):
        host.plugin.load_datasets(cfg)


def test_bad_settings_are_named(host):
    with pytest.raises(ConfigError, match=r"Found 'pool_faktor'"):
        registered(host, coreset={"pool_faktor": 2})
    with pytest.raises(ConfigError, match=r"datasets\[1\].source should be the name"):
        registered(host, datasets=[Settings(path="a"), Settings(path="b", source=3)])
    cfg = registered(host)
    cfg.datasets = cfg.datasets[:1]
    with pytest.raises(ConfigError, match=r"datasets should be those of the YAML, 2. Found 1"):
        host.plugin.load_datasets(cfg)
    cfg = registered(host, dataloader_drop_last=True, batch_size=64)
    with pytest.raises(ConfigError, match=r"dataloader_drop_last.*Found 32 rows, fewer than.*64"):
        host.plugin.load_datasets(cfg)


def test_neighbors_that_do_not_go_with_it(host):
    cfg = registered(host)
    host.plugins = {"mine": host.plugin, "kd": SimpleNamespace(get_trainer_cls=lambda cfg: Trainer)}
    with pytest.raises(ConfigError, match=r"one alone should bring a Trainer.*Found kd"):
        host.plugin.load_datasets(cfg)
    host.plugins, host.pad = {"liger": SimpleNamespace(get_trainer_cls=lambda cfg: None)}, None
    with pytest.raises(ConfigError, match=r"special_tokens: {pad_token"):
        host.plugin.load_datasets(cfg)


def test_without_a_part_in_it_the_host_is_as_it_was(host):
    cfg = registered(host, coreset={"pool_factor": 1}, sample_packing=True)
    assert host.plugin.load_datasets(cfg) is None
    assert host.plugin.get_trainer_cls(cfg) is None


def test_the_block_is_a_key_of_the_host(host):
    module, name = host.plugin.get_input_args().rsplit(".", 1)
    assert module == host.module.__name__
    assert getattr(host.module, name)(coreset={"pool_factor": 2}).coreset == {"pool_factor": 2}


@pytest.mark.usefixtures("one_thread")
def test_the_host_s_trainer_trains_as_ours_and_counts_tokens(host, tmp_path):
    cfg = registered(host, coreset={"pool_factor": 4})
    plain = trainer(tmp_path / "a", tiny_model(), CoresetConfig(pool_factor=4))
    kind = host.plugin.get_trainer_cls(cfg)
    assert issubclass(kind, AxolotlTrainer)
    assert issubclass(kind, CoresetMixin)
    plain.args.output_dir = str(tmp_path / "b")
    made = kind(model=tiny_model(), args=plain.args, train_dataset=mixture(), data_collator=Collator())
    expected = weights(run(trainer(tmp_path / "c", tiny_model(), CoresetConfig(pool_factor=4))))
    assert same(weights(run(made)), expected)
    assert not made._run.weights.owned
    assert made.counted > 0


@pytest.mark.parametrize("option, value", [("orpo_alpha", 0.1), ("enable_dft_loss", True)])
def test_losses_that_hosts_ask_for_by_arguments_are_refused_without_a_plug_in_too(tmp_path, option, value):
    made = trainer(tmp_path / "a", tiny_model())
    setattr(made.args, option, value)
    with pytest.raises(LossMismatchError, match=f"Found {option}"):
        run(made)
