"""The Power scheduler: its law, its run, what it refuses."""

import pytest

from corebatch.errors import ConfigError
from corebatch.optimizers import PowerLaw
from training import arguments, mixture, resumed_at, run, same, tiny_model, trainer, weights


def rate(made, step):
    return made.highest * made(step)


def test_the_law_is_the_papers():
    """rate = min(highest, rows x a x tokens^b) with a = 4.6 and b = -0.51."""
    made = PowerLaw(highest=0.02, rows=128, steps=10**6, a=4.6, tokens_per_step=128 * 4096, decay=0)
    for tokens in (1e9, 1e10, 1e11):
        assert rate(made, tokens / made.tokens_per_step) == pytest.approx(min(0.02, 128 * 4.6 * tokens**-0.51))
    assert made(0) == made(10) == 1


def test_the_same_tokens_have_the_rate_in_proportion_to_the_batch():
    small, large = (PowerLaw(highest=1, rows=n, steps=10**6, a=1e-3, tokens_per_step=100 * n, decay=0) for n in (4, 16))
    assert large(1000) / small(4000) == pytest.approx(4)


def test_it_rises_to_the_law_and_falls_to_zero():
    made = PowerLaw(highest=1, rows=1, steps=100, warmup=10, a=1.0, tokens_per_step=10.0, b=-0.5, decay=0.2)
    assert [made(step) for step in (0, 10, 80, 100)] == pytest.approx([0, 100**-0.5, 800**-0.5, 0])
    assert [made(5), made(90)] == pytest.approx([made(10) / 2, made(80) / 2])


def test_a_run_follows_it_and_goes_on_where_it_was(tmp_path):
    def made(folder):
        return trainer(
            folder, tiny_model(), lr_scheduler_type="power", save_strategy="steps", save_steps=3, warmup_steps=2,
            lr_scheduler_kwargs={"a": 1e-2, "decay": 0.0},
        )  # fmt: skip

    whole = run(made(tmp_path / "whole"))
    rows, lengths = 8, [len(ids) for ids in mixture()["input_ids"]]
    law = PowerLaw(
        highest=5e-3, rows=rows, steps=6, warmup=2, a=1e-2, tokens_per_step=rows * sum(lengths) / len(lengths), decay=0
    )
    found = [line["learning_rate"] for line in whole.state.log_history if "loss" in line]
    after = 0 if found[0] == 0 else 1  # transformers 4 and 5 log the rate before or after the step
    assert found == pytest.approx([rate(law, step + after) for step in range(6)])
    assert found[-1] < 5e-3
    _, resumed = resumed_at(3, tmp_path / "whole", made)
    assert same(weights(whole), weights(resumed))


@pytest.mark.parametrize(
    "options, words",
    [
        ({}, "needs lr_scheduler_kwargs.a"),
        ({"a": 1.0, "tokens": 3}, "Found 'tokens'"),
        ({"a": 0}, "a should be a number above 0. Found 0"),
        ({"a": 1.0, "b": 0.5}, "b should be a number below 0"),
        ({"a": 1.0, "decay": 2}, r"decay should be a number in \[0, 1\]"),
    ],
)
def test_options_that_it_has_not(tmp_path, options, words):
    with pytest.raises(ConfigError, match=words):
        arguments(tmp_path, lr_scheduler_type="power", lr_scheduler_kwargs=options)


def test_data_that_do_not_say_their_lengths_need_the_tokens_of_a_step(tmp_path):
    rows = mixture().to_iterable_dataset()
    for given, refused in (({}, True), ({"tokens_per_step": 100}, False)):
        made = trainer(
            tmp_path, tiny_model(), train_dataset=rows, max_steps=2, lr_scheduler_type="power",
            lr_scheduler_kwargs={"a": 1.0, **given},
        )  # fmt: skip
        made.create_optimizer()
        if refused:
            with pytest.raises(ConfigError, match=r"needs lr_scheduler_kwargs\.tokens_per_step"):
                made.create_scheduler(2)
        else:
            assert made.create_scheduler(2) is made.lr_scheduler
