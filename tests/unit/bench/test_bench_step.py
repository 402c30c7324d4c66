"""Steps measured side by side on a tiny model: what is compared, what is counted, what is refused."""

import json
import math
from dataclasses import replace

import pytest
import torch

from corebatch.bench.live_bytes import LiveBytes
from corebatch.bench.models import PRESETS, build_model, model_config
from corebatch.bench.steps import arm as step_arm
from corebatch.bench.steps import measure as step
from corebatch.bench.steps import plan as step_plan
from corebatch.bench.steps import report as step_report
from corebatch.bench.steps.arm import ArmRound
from corebatch.bench.steps.plan import ACCUMULATION, ARMS, COREBATCH, SMALL, SORTED, Shape, StepArm, StepSettings
from corebatch.errors import ConfigError, DataError, UnsupportedModelError
from corebatch.trainer import CoresetConfig, ScoringConfig
from corebatch.trainer.run import SelectionRun

LARGE, MICRO, STEPS = 16, 2, 2
TINY = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    (folder / "config.json").write_text(json.dumps(TINY))
    return folder


@pytest.fixture(scope="module")
def lengths(tmp_path_factory):
    path = tmp_path_factory.mktemp("lengths") / "rows.jsonl"
    rows = [{"prompt": "p" * (8 + 9 * i), "completion": "c" * (4 + 3 * i)} for i in range(16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def settings(model_folder, lengths):
    return StepSettings(
        model=str(model_folder), lengths=lengths, max_length=32, large=LARGE, micro_batch=MICRO, ratios=[2, 4],
        steps=STEPS, rounds=2, seed=1,
        arms={name: None for name in ARMS if name not in ("full", "none (tokens x importance)")},
    )  # fmt: skip


@pytest.fixture(scope="module")
def lines(settings):
    return step.bench_step(step_plan.plan(settings))


def one(lines, arm, ratio=1):
    (line,) = [line for line in lines if (line["arm"], line["ratio"]) == (arm, ratio)]
    return line


def test_every_arm_has_a_line_with_all_that_a_claim_needs(lines, settings):
    corebatch = ["full", "none (tokens x importance)"]
    assert [(line["arm"], line["ratio"]) for line in lines] == [
        (ACCUMULATION, 1), (SORTED, 1), *((arm, ratio) for ratio in (2, 4) for arm in (SMALL, SORTED, *corebatch)),
    ]  # fmt: skip
    for line in lines:
        assert line["hardware"]
        assert line["versions"]
        assert (line["seed"], line["large"], line["small"]) == (settings.seed, LARGE, LARGE // line["ratio"])
        for key in ("step_ms", "to_accumulation", "to_plain_sorted", "token_to_plain_sorted", "speedup"):
            assert 0 < line[f"{key}_min"] <= line[key] <= line[f"{key}_max"] < math.inf
        assert line["peak_bytes"] > line["start_bytes"] > 0
        json.dumps(line)


def test_ratios_are_taken_to_the_plain_arms(lines):
    assert one(lines, ACCUMULATION)["to_accumulation_max"] == one(lines, SORTED)["to_plain_sorted_max"] == 1
    assert {one(lines, SORTED, ratio)["token_to_plain_sorted_min"] for ratio in (1, 2, 4)} == {1}
    assert one(lines, SMALL, 4)["memory_to_small"] == 1
    assert one(lines, ACCUMULATION)["memory_to_small"] is None


def test_arms_train_and_score_the_same_rows(lines):
    large = one(lines, ACCUMULATION)
    for ratio, plain in ((1, large), (2, one(lines, SMALL, 2)), (4, one(lines, SMALL, 4))):
        by_length = one(lines, SORTED, ratio)
        assert by_length["tokens_trained"] == plain["tokens_trained"]
        assert by_length["labels_trained"] == plain["labels_trained"]
        assert by_length["padding"] < plain["padding"] or (ratio == 4 and by_length["padding"] == plain["padding"])
        assert by_length["largest_micro_batch"] <= plain["largest_micro_batch"]
        assert by_length["tokens_scored"] == 0
        assert by_length["coreset"]["micro_batches"] == "positions"
    for ratio in (2, 4):
        full = one(lines, "full", ratio)
        assert full["tokens_scored"] == large["tokens_trained"]
        assert 0 < full["tokens_trained"] < large["tokens_trained"]
        assert 0 < full["score_share"] < 1
        assert 0 < full["overhead_share"] < 1
        assert full["padding"] < large["padding"]  # repacked by length
        assert one(lines, "none (tokens x importance)", ratio)["tokens_scored"] == 0


@pytest.mark.parametrize("adapter, precision, checkpointing", [("full", "float32", False), ("lora", "bfloat16", True)])
def test_other_settings_run(settings, adapter, precision, checkpointing):
    few = replace(
        settings, adapter=adapter, precision=precision, checkpointing=checkpointing, ratios=[2], rounds=1, steps=1
    )
    made = step.bench_step(step_plan.plan(few))
    assert len(made) == 6
    assert {line["precision"] for line in made} == {precision}


def test_optimizer_state_and_weights_count_as_memory(lines):
    line = one(lines, ACCUMULATION)
    assert line["start_bytes"] >= 4 * line["parameters"] + 8 * line["trained_numbers"]


def test_a_period_is_measured_whole():
    for scoring in ("every", {"way": "every"}, {"way": "every", "steps": 4}, ScoringConfig(way="every", steps=4)):
        arm = StepArm(kind=COREBATCH, name="every 4", ratio=2, coreset=CoresetConfig(scoring=scoring))
        assert (arm.period, arm.steps(3), arm.steps(5)) == (4, 4, 8)
    assert StepArm(kind=COREBATCH, name="full", coreset=CoresetConfig()).steps(3) == 3


def test_memory_is_counted_over_a_whole_period(settings, model_folder, monkeypatch):
    monkeypatch.setattr(StepArm, "period", 3)
    counted = []
    monkeypatch.setattr(step_arm, "LiveBytes", lambda: counted.append(LiveBytes()) or counted[-1])
    ends = []
    closed = step_arm._Clock.close
    monkeypatch.setattr(step_arm._Clock, "close", lambda self: ends.append(len(self.ends)) or closed(self))
    rows = step_arm.Rows([Shape(8, 4)], 7 * LARGE, 64, 0)
    arm = StepArm(kind=SMALL, name=SMALL, ratio=4)
    run = step_arm.run_arm(arm, build_model(str(model_folder)), rows, settings, number=0, memory=True)
    assert ends[0] == 1 + 3  # three steps for two, and none that is counted is timed
    assert run.tokens == 8 * LARGE / 4
    assert run.peak_bytes == counted[0].peak_bytes > run.start_bytes
    assert not step_arm.run_arm(arm, build_model(str(model_folder)), rows, settings, number=1, memory=False).peak_bytes


def test_summaries_take_ratios_within_a_round(settings):
    def runs(*seconds):
        return [ArmRound(seconds=s, tokens=10, labels=5, cells=20, largest=4, peak_bytes=100) for s in seconds]

    arms = [
        StepArm(kind=ACCUMULATION, name=ACCUMULATION),
        StepArm(kind=SORTED, name=SORTED),
        StepArm(kind=SMALL, name=SMALL, ratio=2),
        StepArm(kind=SORTED, name=SORTED, ratio=2),
        StepArm(kind=COREBATCH, name="full", ratio=2, coreset=CoresetConfig()),
    ]
    table = dict(zip(arms, [runs(2, 4, 8), runs(1, 4, 4), runs(1, 2, 3), runs(2, 1, 4), runs(1, 3, 2)], strict=True))
    full = step.summaries(table, settings)[-1]
    assert (full["to_accumulation_min"], full["to_accumulation"], full["to_accumulation_max"]) == (0.25, 0.5, 0.75)
    kinds = ("", "_min", "_max")
    assert [full[f"to_plain_sorted{kind}"] for kind in kinds] == [0.75, 0.5, 1]
    assert [full[f"token_to_plain_sorted{kind}"] for kind in kinds] == [0.5, 0.5, 3]  # to that of as many rows
    assert full["speedup"] == 2
    assert full["padding"] == 0.5


def test_micro_batches_in_parts_are_counted_whole(settings, model_folder):
    few = replace(settings, ratios=[2], steps=1)
    model, rows = build_model(str(model_folder)), step_arm.Rows([Shape(8, 4), Shape(30, 4)], 3 * LARGE, 64, 0)
    found = [
        step_arm.run_arm(
            StepArm(kind=SORTED, name=str(most), coreset=coreset), model, rows, few, number=0, memory=False
        )
        for most in (None, 32)
        for coreset in [CoresetConfig(pool_factor=1, micro_batches={"by": "positions", "most": most})]
    ]
    whole, parts = found
    assert (parts.tokens, parts.labels) == (whole.tokens, whole.labels)
    assert parts.largest <= 32 < whole.largest


def test_one_micro_batch_has_nothing_to_sort(settings):
    made = step_plan.plan(replace(settings, ratios=[4, 8]))
    assert [arm.ratio for arm in made.arms if arm.kind == SORTED] == [1, 4]
    assert made.notes == ["left out: plain_sorted at 1/8 (one micro-batch has nothing to sort: it is the small batch)"]


def test_lengths_of_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": "x" * 40, "completion": "y" * 9},  # 10 tokens, 3 trained
        {"text": "z" * 100},  # 25, cut
        {"input_ids": [5] * 8, "labels": [-100] * 6 + [5] * 2},
        {"input_ids": [5] * 30, "labels": [-100] * 25 + [5] * 5},  # nothing trained is left
        {"input_ids": [5] * 4},
        {"text": "z"},  # one token predicts nothing
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert step_plan.read_shapes(path, 20) == [Shape(13, 3), Shape(20, 20), Shape(8, 2), Shape(4, 4)]


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"prompt": "a"}', "line 1: a row should have"),
        ("{}\n", "Found nothing"),
        ('{"text": "long enough"}\n[1]', "line 2: should be a JSON object"),
        ('{"text"', "line 1: should be a JSON object"),
        ('{"text": 3}', "a text should be a string. Found int"),
        ('{"input_ids": [1, 2], "labels": [1]}', "lists of one length"),
        ('{"input_ids": 7}', "lists of one length"),
        ("", "rows with a trained token"),
    ],
)
def test_bad_lengths(tmp_path, text, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        step_plan.read_shapes(path, 32)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"adapter": "dora"}, "adapter should be lora or full. Found 'dora'"),
        ({"precision": "int8"}, "precision"),
        ({"rounds": 0}, "rounds should be at least 1"),
        ({"ratios": []}, "ratios"),
        ({"ratios": [1]}, "ratios"),
        ({"ratios": [2, 2]}, "ratios"),
        ({"ratios": [3]}, "multiple of ratio x micro-batch, here 3 x 2"),
        ({"length": 8}, "Found both"),
        ({"lengths": None, "length": 33}, "between 2 and max_length 32. Found 33"),
    ],
)
def test_bad_settings(settings, changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(settings, **changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": "llama-10n"}, "Did you mean 'llama-10m'"),
        ({"lengths": "nowhere.jsonl"}, "cannot be read"),
        ({"max_length": 100, "lengths": None, "length": 100}, "64 tokens at most. Found 100"),
        ({"arms": {"mine": {"scorer": "lost"}}}, "The arm 'mine'.*loss"),
        ({"arms": {"mine": {"pool_factor": 3}}}, "no pool_factor"),
    ],
)
def test_what_is_wrong_is_found_before_anything_runs(settings, tmp_path, changes, message):
    if changes.get("lengths"):
        changes = {"lengths": tmp_path / changes["lengths"]}
    with pytest.raises(ConfigError, match=message):
        step_plan.plan(replace(settings, **changes))


def test_an_arm_that_this_version_refuses_is_left_out_with_its_error(settings, monkeypatch):
    monkeypatch.setitem(step_plan.ARMS, "of the future", {"warp": 9})
    made = step_plan.plan(settings)
    (note,) = made.notes
    assert "of the future (ConfigError: coreset has the keys" in note
    assert "of the future" not in [arm.name for arm in made.arms]


def test_an_arm_that_the_model_refuses_is_left_out(settings, monkeypatch):
    def refuse(self, *args):
        raise UnsupportedModelError("no such projection")

    monkeypatch.setattr(SelectionRun, "small_batch", refuse)
    made = step_plan.plan(replace(settings, ratios=[2], rounds=1, steps=1))
    said = []
    lines = step.bench_step(made, said.append)
    assert [line["arm"] for line in lines] == [ACCUMULATION, SMALL]
    assert {line["to_plain_sorted"] for line in lines} == {None}
    assert {row["to plain_sorted's"] for row in step_report.table_rows(lines)} == {"-"}
    assert step_report.report_text(lines, "command")
    assert "left out: plain_sorted at 1/1 (UnsupportedModelError: no such projection)" in said
    assert "left out: full at 1/2 (UnsupportedModelError: no such projection)" in said
    assert set(made.notes) < set(said)


@pytest.mark.parametrize("text", ["full", "={}", "name=3", "name=", "name={scorer: ["])
def test_bad_arms(text):
    with pytest.raises(ConfigError, match="arm"):
        step_plan.parse_arms([text])


def test_arms_are_read():
    arms = step_plan.parse_arms(["two words={scorer: loss, selector: importance}", "full=null", "plain={}"])
    assert arms == {"two words": {"scorer": "loss", "selector": "importance"}, "full": None, "plain": {}}


@pytest.mark.parametrize(
    "name, millions", [("llama-10m", 10), ("llama-30m", 30), ("llama-3.2-1b", 1236), ("phi-2", 2780)]
)
def test_presets_have_the_sizes_of_their_names(name, millions):
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config(name))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)
    assert set(PRESETS) == {"llama-10m", "llama-30m", "llama-3.2-1b", "phi-2"}


def test_models_are_what_was_asked_for(model_folder, tmp_path):
    lora = build_model(str(model_folder), adapter="lora", precision="bfloat16")
    trained = {name.split(".")[-4] for name, p in lora.named_parameters() if p.requires_grad}
    assert trained == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert {p.dtype for p in lora.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in lora.parameters() if not p.requires_grad} == {torch.bfloat16}
    full = build_model(str(model_folder), adapter="full", seed=1)
    assert all(p.requires_grad for p in full.parameters())
    full.save_pretrained(tmp_path)
    own = build_model(str(tmp_path), adapter="full", random_weights=False)
    new = build_model(str(tmp_path), adapter="full")
    assert torch.equal(own.lm_head.weight, full.lm_head.weight)
    assert not torch.equal(new.lm_head.weight, full.lm_head.weight)


def test_bad_models(tmp_path):
    bad = tmp_path / "config.json"
    bad.write_text("{")
    with pytest.raises(ConfigError, match="transformers refuses"):
        model_config(str(bad))
    with pytest.raises(ConfigError, match="adapter should be"):
        build_model("llama-10m", adapter="none")


def test_targets_say_what_was_reached(lines):
    line = {**one(lines, "full", 2), "large": 128, "speedup": 1.5}
    faster = {**line, "arm": "mine", "speedup": 1.9}
    others = [{**line, "checkpointing": False, "speedup": 9}, {**line, "tokens_scored": 0, "speedup": 9}]
    rows = step_report.target_rows([line, faster, *others])
    assert rows[0]["target"].startswith("LoRA, 64 of 128")
    assert rows[0]["full"].startswith("1.50 (")
    assert rows[0]["full"].endswith("x, reached")
    assert rows[0]["fastest arm that scores"].endswith("x, reached, mine")
    assert step_report.target_rows([{**line, "speedup": 1.4}])[0]["fastest arm that scores"].endswith(
        "not reached, full"
    )
    assert {row["fastest arm that scores"] for row in rows[1:]} == {"not measured here"}


def test_a_report_keeps_an_earlier_one(lines, tmp_path):
    path = tmp_path / "folder" / "step.md"
    for number in range(3):
        step_report.write_report(step_report.report_text(lines, f"command {number}", ["left out: nothing"]), path)
    assert sorted(p.name for p in path.parent.iterdir()) == ["step.md", "step.old-1.md", "step.old-2.md"]
    assert "`command 2`" in path.read_text()
    assert "`command 0`" in (path.parent / "step.old-1.md").read_text()
    text = path.read_text()
    for word in (lines[0]["time"][:10], "transformers", "left out: nothing", "with checkpointing", "## Targets"):
        assert word in text
    assert text.count("| 8 of 16 |") == 4
