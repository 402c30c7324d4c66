"""However a step's rows are cut into micro-batches, the same rows are trained with the same update."""

import json

import pytest
import torch

from corebatch.errors import ConfigError
from corebatch.trainer import CoresetConfig
from training import largest_difference, run, tiny_model, trainer, weights

CUTS = {
    "length": "length",
    "positions": "positions",
    "auto": "auto",
    "flops": "flops",
    "capped": {"by": "positions", "most": 40},
    "flops_capped": {"by": "flops", "most": 40},
    "rounded": {"by": "positions", "multiple": 8},
    "plain_rounded": {"by": "plain", "multiple": 8},
}
CHOSEN = ("drawn", "chosen", "weights", "chosen_examples", "tokens_trained", "labels_trained", "weight_max")


def lines(folder):
    return [json.loads(line) for line in (folder / "selection.jsonl").read_text().splitlines()]


def trained(folder, cut, *, lora, padding_free=False, **settings):
    coreset = {"scorer": "tokens", "selector": "importance", "padding_free": padding_free, "micro_batches": cut}
    model = tiny_model(lora=lora, dtype=torch.float64)
    defaults = {"max_steps": 8, "optim": "sgd", "learning_rate": 2e-2, "gradient_accumulation_steps": 3}
    made = run(trainer(folder, model, CoresetConfig(**coreset), **{**defaults, **settings}))
    return made, lines(folder)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_any_cut_trains_the_same(tmp_path, lora, packed):
    plain, expected = trained(tmp_path / "plain", "plain", lora=lora, padding_free=packed)
    size = max(float(w.abs().max()) for w in weights(plain).values())
    for name, cut in CUTS.items():
        if packed and "rounded" in name:
            continue
        made, written = trained(tmp_path / name, cut, lora=lora, padding_free=packed)
        assert largest_difference(weights(plain), weights(made)) / size < 1e-12, name
        for one, other in zip(expected, written, strict=True):
            assert all(one[key] == other[key] for key in CHOSEN), name
            assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-12)
            assert one["positions_plain"] == one["positions_trained"] == other["positions_plain"]
            assert one["largest_plain"] == one["largest_micro_batch"] == other["largest_plain"]
            if name in ("positions", "auto"):
                assert other["positions_trained"] <= one["positions_trained"]
            if "capped" in name:
                assert other["largest_micro_batch"] <= 40
            if packed:
                assert other["positions_trained"] == other["tokens_trained"]


@pytest.mark.parametrize("selector", ["random", "importance"])
def test_a_loss_that_is_a_mean_over_each_micro_batch(tmp_path, selector):
    """Its rows have weights, or it would count which rows meet."""
    found = []
    for cut in ("plain", "positions"):
        coreset = CoresetConfig(scorer="tokens", selector=selector, micro_batches=cut)
        made = trainer(tmp_path / cut, tiny_model(dtype=torch.float64), coreset, optim="sgd")
        made.model_accepts_loss_kwargs = False
        found.append(weights(run(made)))
    assert largest_difference(*found) < 1e-12


def test_one_micro_batch_a_step(tmp_path):
    """With nothing to regroup every cut is the plain one."""
    settings = {"lora": False, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 6}
    plain, expected = trained(tmp_path / "plain", "plain", **settings)
    made, written = trained(tmp_path / "positions", "positions", **settings)
    assert largest_difference(weights(plain), weights(made)) < 1e-12
    assert [line["positions_trained"] for line in expected] == [line["positions_trained"] for line in written]


def test_the_record_counts_what_is_trained(tmp_path):
    made = trainer(tmp_path, coreset=CoresetConfig(micro_batches={"by": "positions", "multiple": 8}))
    sizes, step = [], type(made).training_step

    def watched(self, model, inputs, *args, **kwargs):
        sizes.append(inputs["input_ids"].shape)
        return step(self, model, inputs, *args, **kwargs)

    made.training_step = watched.__get__(made)
    run(made)
    each = [rows * width for rows, width in sizes]
    assert {width % 8 for _, width in sizes} == {0}
    for number, line in enumerate(lines(tmp_path)):
        of_step = each[2 * number : 2 * number + 2]
        assert line["positions_trained"] == sum(of_step)
        assert line["largest_micro_batch"] == max(of_step)


def test_flops_that_cannot_be_counted_are_an_error(tmp_path, monkeypatch):
    from corebatch.record import writer

    monkeypatch.setattr(writer, "flops_or_reason", lambda *_: (None, "it has layers of type mamba"))
    with pytest.raises(ConfigError, match=r"micro_batches flops.*layers of type mamba.*Use positions"):
        run(trainer(tmp_path, coreset=CoresetConfig(micro_batches="flops")))


def test_nothing_is_rounded_where_nothing_is_padded():
    with pytest.raises(ConfigError, match=r"micro_batches.multiple.*Found 8.*padding_free true"):
        CoresetConfig(micro_batches={"multiple": 8}, padding_free=True)
