"""Keys of other trainers, mistyped keys, numbers out of range, and YAML that should not be taken."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import TrainingArguments

from corebatch.cli.main import main
from corebatch.config.coerce import RANGES, Range
from corebatch.config.other_names import OTHER_NAMES, other_name
from corebatch.config.settings import KEYS, DataSettings, ModelSettings, check_optim_args
from corebatch.trainer import CoresetConfig


@pytest.fixture
def refused(monkeypatch, capfd):
    """The message of `corebatch words...`, which ends with exit code 2."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["corebatch", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        error = capfd.readouterr().err
        assert stop.value.code == 2, error
        assert "Traceback" not in error
        return error

    return run


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("assistant_only_loss", "true", "train_turns"),
        ("completion_only_loss", "true", "Answers alone are trained anyway"),
        ("train_on_inputs", "false", "Prompts are never trained"),
        ("packing", "true", "coreset.padding_free"),
        ("sample_packing", "true", "left out on purpose"),
        ("torch_dtype", "bfloat16", "Here it is dtype."),
        ("lora_rank", "8", "Here it is lora_r."),
        ("r", "8", "Here it is lora_r."),
        ("dataset_text_field", "content", "A column called text"),
        ("max_seq_length", "512", "Here it is max_length."),
        ("sequence_len", "512", "Here it is max_length."),
        ("cutoff_len", "512", "Here it is max_length."),
        ("micro_batch_size", "2", "Here it is per_device_train_batch_size."),
        ("gradient_accumulation", "2", "Here it is gradient_accumulation_steps."),
        ("num_epochs", "2", "Here it is num_train_epochs."),
        ("base_model", "x", "Here it is model_name_or_path."),
        ("load_in_8bit", "true", "load_in_4bit"),
        ("evaluation_strategy", "steps", "Here it is eval_strategy."),
        ("no_cuda", "true", "Here it is use_cpu."),
        ("pool_factor", "4", "It belongs to the block coreset: coreset.pool_factor."),
        ("selector", "pivotal", "coreset.selector"),
    ],
)
def test_keys_of_other_trainers(refused, config, key, value, words):
    error = refused("train", config, f"--{key}", value)
    assert f"the command line: unknown key {key!r}" in error
    assert words in error
    lines = config.read_text().splitlines()
    config.write_text("\n".join([*lines, f"{key}: {value}"]))
    assert f"config.yaml, line {len(lines) + 1}: unknown key {key!r}" in refused("validate", config)


@pytest.mark.parametrize(
    "optim, given, words",
    [
        ("adamw_torch", "eps=1e-6", "Found eps, which it passes over"),
        ("sgd", "momentum=0.9,betas=0.5", "Found betas, which"),
        ("rmsprop", "momentum=0.9,lr=1", "Found lr, which"),
        ("adamw_torch", "momentum", "key=value pairs"),
    ],
)
def test_an_option_that_the_optimizer_passes_over(refused, config, optim, given, words):
    for command in (("train",), ("validate",), ("validate", "--fast")):
        assert words in refused(*command, config, "--optim", optim, "--optim_args", given)


def test_an_option_that_the_optimizer_takes(tmp_path):
    for optim, given in (("sgd", "momentum=0.9, nesterov=true"), ("adagrad", "eps=1e-10"), ("rmsprop", "alpha=0.99")):
        check_optim_args(TrainingArguments(output_dir=str(tmp_path), optim=optim, optim_args=given))


def test_every_other_name_leads_somewhere():
    for key, found in OTHER_NAMES.items():
        assert key not in CoresetConfig.__dataclass_fields__ or key in ("padding_free",)
        if not found.endswith("."):
            name = found.split(":")[0].split()[0]
            known = (
                *KEYS,
                "group_by_length",
                "overwrite",
                *(f"coreset.{k}" for k in CoresetConfig.__dataclass_fields__),
            )
            assert name in known, (key, name)
    assert other_name("learning_rate_of_mine", KEYS) == ""


@pytest.mark.parametrize(
    "words, message",
    [
        (["--max_step", "3"], "the command line: unknown key 'max_step'. Did you mean 'max_steps'?"),
        (["--coreset.pool_factor", "1000000000"], "coreset.pool_factor should be at most 1,048,576"),
        (["--coreset.seed", "9" * 40], "coreset.seed should be at most"),
        (["--max_steps", "-5"], "max_steps should be at least 1 and at most 1,000,000,000, or -1. Found -5"),
        (["--max_steps", "0"], "max_steps should be at least 1"),
        (["--max_steps", "9e29"], "max_steps should be int. Found '9e29'"),
        (["--max_steps", "9.0e+29"], "max_steps should be int"),
        (["--max_steps", "9" * 40], "Found a number of more than 20 digits"),
        (["--max_steps", "9" * 5000], "--max_steps"),
        (["--max_steps="], "max_steps should have a value"),
        (["--per_device_train_batch_size", "0"], "per_device_train_batch_size should be at least 1"),
        (["--per_device_eval_batch_size", "-1"], "per_device_eval_batch_size should be at least 1"),
        (["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps should be at least 1"),
        (["--learning_rate", ".nan"], "learning_rate should be at least 0 and finite. Found nan"),
        (["--learning_rate", "nan"], "learning_rate should be"),
        (["--learning_rate", ".inf"], "learning_rate should be"),
        (["--learning_rate", "1e400"], "learning_rate should be"),
        (["--learning_rate", "-1e-4"], "learning_rate should be at least 0"),
        (["--seed", "-1"], "seed should be at least 0"),
        (["--seed", "4294967296"], "seed should be"),
        (["--data_seed", "-1"], "data_seed should be"),
        (["--warmup_steps", "-1"], "warmup_steps should be"),
        (["--num_train_epochs", "0"], "num_train_epochs should be above 0"),
        (["--num_train_epochs", ".inf"], "num_train_epochs should be"),
        (["--weight_decay", ".nan"], "weight_decay should be"),
        (["--adam_beta1", "1"], "adam_beta1 should be at least 0 and below 1"),
        (["--max_grad_norm", "-1"], "max_grad_norm should be"),
        (["--dataloader_num_workers", "1000000"], "dataloader_num_workers should be"),
        (["--lora_r", "0"], "lora_r should be at least 1"),
        (["--lora_alpha", "0"], "lora_alpha should be above 0"),
        (["--lora_dropout", "1"], "lora_dropout should be"),
        (["--max_length", "1"], "max_length should be at least 2"),
        (["--max_length", "99999999999"], "max_length should be"),
        (["--logging_steps", "-1"], "logging_steps should be"),
        (["--save_steps", ".nan"], "save_steps should be"),
        (["--ddp_timeout", "9" * 30], "ddp_timeout should be"),
        (["--lr_scheduler_type", "straight"], "straight"),
        (["--lr_scheduler_kwargs", "{nothing: 1}"], "lr_scheduler_type and lr_scheduler_kwargs cannot be used"),
        (["--report_to", "wandb"], "wandb"),
        (["--report_to", "nobody"], "nobody"),
        (["--attn_implementation", "fast"], "fast"),
        (["--accelerator_config", "{nothing: 1}"], "nothing"),
        (["--fsdp", "nothing"], ""),
        (["--label_names", "x"], "label_names should be a list. Found 'x'"),
        (["--train_sampling_strategy", "x"], "train_sampling_strategy should be one of random"),
        (["--log_level", "loud"], "log_level should be one of"),
        (["--dataloader_persistent_workers"], "persistent_workers"),
        (["--push_to_hub"], "push_to_hub"),
        (["--eval_datasets", "{}"], "`eval_datasets` should be a list"),
        (["--eval_datasets", "[{paths: x}]"], "eval_datasets[0]: unknown key 'paths'"),
        (["--output_dir="], "the command line: the key 'output_dir' is missing"),
        (["--coreset.scoring", "{way: window, tokens: -1}"], "tokens"),
        (["--coreset.scoring", "{way: first_blocks, blocks: 999}"], "blocks"),
        (["--coreset.scoring", "{way: every, steps: 0}"], "steps"),
        (["--coreset.scoring", "{way: two_phase, share: .nan}"], "share"),
        (["--coreset.scoring", "{reuse_gb: -1}"], "reuse_gb"),
        (["--coreset.scoring", "{rows: 0}"], "rows"),
        (["--coreset.scorer", "zeroth_order", "--coreset.scorer_options", "{epsilon: .nan}"], "epsilon"),
        (["--coreset.scorer_options", "{projection_dim: -1}"], "projection_dim"),
        (["--datasets", "[{path: x, weight: 0}]"], "weight"),
        (["--datasets", "[{path: x, weight: .inf}]"], "weight"),
        (["--datasets", "[{path: /dev/zero}]"], "/dev/zero"),
        (["--deepspeed", "nowhere.json"], ""),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)  # fmt: skip
def test_values_that_cannot_be(refused, config, words, message):
    assert message in refused("train", config, *words)


def test_a_bad_value_in_the_file_is_told_with_its_line(refused, config):
    lines = config.read_text().splitlines()
    number = next(n for n, line in enumerate(lines, 1) if line.startswith("max_steps"))
    lines[number - 1] = "max_steps: -5"
    config.write_text("\n".join(lines))
    assert f"config.yaml, line {number}: max_steps should be at least 1" in refused("validate", config)


@pytest.mark.parametrize("low, open_low, also, number, fits", [(0, True, None, 0, False), (1, False, -1, -1, True)])
def test_ranges(low, open_low, also, number, fits):
    assert Range(low, 10, open_low=open_low, also=also).holds(number) is fits
    assert not Range(0).holds(float("nan"))
    assert not Range(0).holds(float("inf"))
    assert set(RANGES) - set(KEYS) <= {"warmup_ratio"}


ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    "text, message",
    [
        ("max_steps: 1\nseed: 2\nmax_steps: 3\n", "line 3: the key 'max_steps' is given twice, first in line 1"),
        ("coreset:\n  seed: 1\n  seed: 2\n", "line 3: the key 'seed' is given twice"),
        (ALIASES, "aliases written out"),
        ("a: &a [*a]\n", "nested"),
        ("coreset: " + "[" * 3000 + "]" * 3000 + "\n", "nested"),
        ("coreset: " + "[" * 200 + "]" * 200 + "\n", "nested"),
        ("seed: " + "9" * 5000 + "\n", "line 1: seed should be a value"),
        ("seed: 2024-13-45\n", "line 1: seed should be a value"),
        ("seed: !!python/object/apply:os.system [ls]\n", "line 1: not YAML"),
        ("a: 1\n---\nb: 2\n", "not YAML"),
        ("\x00", "not YAML"),
        ("", "should hold keys and values. Found nothing"),
        ("? [a]\n: 1\n", "unknown key"),
        ("x" * (5 * 2**20), "at most 4 MB"),
        ("max_steps:\n", "missing"),
    ],
    ids=lambda value: value[:20],
)
def test_yaml_that_is_refused(refused, tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert message in refused("train", path)
    path.write_bytes(b"\xff\xfe\x00")
    assert "bad.yaml" in refused("train", path)
    assert "bad.yaml" not in refused("train", tmp_path)  # a folder


def test_deep_values_on_the_command_line(refused, config):
    assert "--coreset" in refused("train", config, "--coreset", "[" * 3000 + "]" * 3000)


def test_help_and_version_import_no_torch():
    code = (
        "import sys, json\nsys.argv = ['corebatch', *json.loads(sys.argv[1])]\n"
        "from corebatch.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    for words in (["--help"], ["--version"], ["bench", "--help"], ["bench", "step", "--help"], ["evaluate", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, json.dumps(words)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout


@pytest.mark.parametrize("command", ["train", "validate"])
def test_help_lists_the_own_keys(monkeypatch, capsys, command):
    monkeypatch.setattr(sys, "argv", ["corebatch", command, "--help"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    out = capsys.readouterr().out
    rows = {tuple(line.split()) for line in out.splitlines()}
    assert ("lora_r", "int", "16") in rows
    assert ("coreset.pool_factor", "int", "2") in rows
    assert ("max_length", "int", "1024") in rows
    assert ("weight", "float", "1.0") in rows
    assert ("model_name_or_path", "str", "needed") in rows
    assert "docs/running/cli.md" in out
    assert "TrainingArguments" in out


def test_the_docs_page_names_every_own_key():
    page = (Path(__file__).parents[3] / "docs" / "running" / "cli.md").read_text()
    for kind in (ModelSettings, DataSettings):
        for key in kind.__dataclass_fields__:
            assert f"`{key}`" in page, key


def test_what_is_public_is_there_without_being_imported():
    import corebatch

    assert {"select", "Selection", "SourceGroup", "CorebatchError"} <= set(dir(corebatch))
    assert corebatch.select.__name__ == "select"
    with pytest.raises(AttributeError, match="nothing"):
        corebatch.nothing  # noqa: B018 - the access is the test
