"""`gradient_norm`, `representation`, `logits` and `length`, each against a loop over examples in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from autograd_twin import full_token_losses, per_example_gradients
from torch import Tensor, nn

from corebatch.errors import ConfigError, InputError
from corebatch.model.head import logit_map
from corebatch.scoring import EL2N, SCORERS, GradientNorm, LastLayer, Length, Logits, Representation
from corebatch.scoring.gradient_norm import squared_norms
from corebatch.scoring.logits import nuclear_norm
from corebatch.trainer import CoresetConfig
from models import adapted, batch_for, take, tiny_batch, tiny_model, value_weights
from training import run, trainer

PADDING = pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
LORA = pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])


def assert_close(found: Tensor, expected: Tensor, rtol: float = 1e-8) -> None:
    expected = expected.detach()
    assert float(expected.abs().max()) > 1e-3, "the case shows nothing"
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-12)


def alone(batch: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """One row without its padding."""
    kept = batch["attention_mask"][row].bool()
    return {key: value[row : row + 1, kept] for key, value in batch.items()}


def forward(model: nn.Module, batch: dict[str, Tensor]) -> Any:
    with torch.no_grad():
        return model(**{key: value for key, value in batch.items() if key != "labels"}, use_cache=False)


# gradient_norm


@LORA
@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi"])
def test_gradient_norm_equals_a_loop_over_examples(kind: str, lora: bool) -> None:
    model, batch = tiny_model(kind, lora=lora), batch_for(kind)
    for unit in ("token_mean", "example_mean"):
        gradients = per_example_gradients(model, batch, value_weights(model, kind)[-2:], unit)
        if kind == "gpt2":  # the last third of the outputs are values; Conv1D keeps [inputs, outputs]
            gradients = [gradient[:, 64:] if lora else gradient[:, :, 64:] for gradient in gradients]
        for blocks in (1, 2):
            scores = GradientNorm(num_blocks=blocks).run(model, batch, loss=unit)
            expected = torch.cat([gradient.flatten(1) for gradient in gradients[-blocks:]], dim=1).norm(dim=1)
            assert_close(scores.features, expected.unsqueeze(1))
            assert scores.losses is not None
            assert_close(scores.losses, full_token_losses(model, batch).sum(dim=1))


@PADDING
@LORA
def test_gradient_norm_is_that_of_last_layer(lora: bool, left: bool) -> None:
    model, batch = tiny_model("llama", lora=lora), tiny_batch(left=left, pad=3)
    found = GradientNorm().score(model, batch)
    assert_close(found, LastLayer().score(model, batch).norm(dim=1, keepdim=True))


@pytest.mark.parametrize("tokens, outputs, inputs", [(3, 16, 16), (16, 3, 16), (8, 16, 16), (1, 1, 1)])
def test_both_ways_to_a_norm_agree(tokens: int, outputs: int, inputs: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    delta = torch.randn(4, tokens, outputs, generator=generator, dtype=torch.float64)
    activation = torch.randn(4, tokens, inputs, generator=generator, dtype=torch.float64)
    expected = torch.einsum("bto,bti->boi", delta, activation).flatten(1).square().sum(dim=1)
    assert_close(squared_norms(delta, activation), expected)
    assert bool((squared_norms(delta * 0, activation) == 0).all())


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
def test_gradient_norm_of_no_blocks_is_an_error(value: Any) -> None:
    with pytest.raises(ConfigError, match=f"gradient_norm's num_blocks should be .* Found {value!r}"):
        GradientNorm(num_blocks=value)


# representation


@PADDING
@pytest.mark.parametrize("pooling", ["mean", "by_position", "last"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma"])
def test_representation_equals_each_row_alone(kind: str, pooling: str, left: bool) -> None:
    model, batch = tiny_model(kind, lora=True), batch_for(kind, left=left, pad=2)
    scores = Representation(pooling=pooling).run(model, batch)  # type: ignore[arg-type]
    expected = []
    for row in range(len(batch["labels"])):
        seen: list[Tensor] = []
        head = model.get_base_model().get_output_embeddings()
        handle = head.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        forward(model, alone(batch, row))
        handle.remove()
        hidden = seen[0][0]
        weights = {"mean": [1] * len(hidden), "by_position": range(1, len(hidden) + 1), "last": [0] * len(hidden)}
        summed = sum(weight * state for weight, state in zip(weights[pooling], hidden, strict=True))
        expected.append(hidden[-1] if pooling == "last" else summed / sum(weights[pooling]))
    assert_close(scores.features, torch.stack(expected))
    assert scores.losses is not None
    assert_close(scores.losses, full_token_losses(model, batch).sum(dim=1))


def test_representation_is_the_last_hidden_state() -> None:
    model, batch = tiny_model("llama"), tiny_batch()
    del batch["attention_mask"], batch["position_ids"]  # then no token is padding
    with torch.no_grad():
        hidden = model(batch["input_ids"], output_hidden_states=True).hidden_states[-1]
    assert_close(Representation().score(model, batch), hidden.mean(dim=1))
    assert_close(Representation(pooling="last").score(model, batch), hidden[:, -1])


def test_representation_of_another_pooling_is_an_error() -> None:
    with pytest.raises(ConfigError, match="pooling should be mean, by_position or last"):
        Representation(pooling="first")  # type: ignore[arg-type]


# logits


def nuclear_norms(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = forward(model, batch).logits[:, :-1]
    trained = batch["labels"][:, 1:] != -100
    norms = [torch.linalg.svdvals(row[mask]).sum() for row, mask in zip(logits, trained, strict=True)]
    return torch.stack(norms).unsqueeze(1)


@pytest.mark.parametrize("elements", [2**25, 300], ids=["whole", "chunks"])
@pytest.mark.parametrize(
    "kind, left",  # padding on the left is NaN to gemma2 in float64: its softmax is in float32
    [(kind, left) for kind in ("llama", "gpt2", "phi", "granite", "cohere") for left in (False, True)]
    + [("gemma2", False)],
)
def test_logits_equal_singular_values_of_full_logits(
    kind: str, elements: int, left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corebatch.scoring.logits.CHUNK_ELEMENTS", elements)
    model, batch = tiny_model(kind), batch_for(kind, left=left)
    scores = Logits().run(model, batch)
    assert_close(scores.features, nuclear_norms(model, batch), rtol=1e-6)
    assert float(scores.features[3]) == 0  # nothing is trained there
    assert scores.losses is not None
    assert_close(scores.losses, full_token_losses(model, batch).sum(dim=1))


@pytest.mark.parametrize("elements", [2**25, 1024])
def test_logits_of_an_adapted_head(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corebatch.scoring.logits.CHUNK_ELEMENTS", elements)
    model = adapted(tiny_model("llama"), "llama", target_modules=["v_proj", "lm_head"]).eval()
    batch = tiny_batch()
    assert_close(Logits().score(model, batch), nuclear_norms(model, batch), rtol=1e-6)


@pytest.mark.parametrize("plain", [True, False], ids=["vocabulary", "positions"])
def test_logits_are_never_whole(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corebatch.scoring.logits.CHUNK_ELEMENTS", 4 * 640)
    head, sizes = nn.Linear(8, 128, dtype=torch.float64), []

    class Wrapped(nn.Module):
        out_features = 128

        def forward(self, hidden: Tensor) -> Tensor:
            return head(hidden)

    def watched(logits: Tensor) -> Tensor:
        sizes.append(logits.numel())
        return logits

    hidden = torch.randn(20, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = nuclear_norm(head if plain else Wrapped(), hidden, watched)
        assert_close(found, torch.linalg.svdvals(head(hidden)).sum(), rtol=1e-6)
    assert len(sizes) > 1
    assert max(sizes) <= 640


def test_float32_logits_keep_small_singular_values() -> None:
    """The Gram matrix is in double precision: a root of float32's rounding would add tens of per cent here."""
    model = tiny_model("llama", dtype=torch.float32)
    head = model.get_output_embeddings()
    hidden = torch.randn(1, 32, generator=torch.Generator().manual_seed(0)).repeat(40, 1)  # rank one
    with torch.no_grad():
        expected = torch.linalg.svdvals(head(hidden).double()).sum()
        assert_close(nuclear_norm(head, hidden, logit_map(model)), expected, rtol=1e-4)


def test_a_row_of_nan_is_nan_and_no_error_of_linear_algebra() -> None:
    model, hidden = tiny_model("llama"), torch.full((3, 32), float("nan"), dtype=torch.float64)
    with torch.no_grad():
        assert bool(nuclear_norm(model.get_output_embeddings(), hidden, logit_map(model)).isnan())


# length


@PADDING
def test_length_counts_what_is_no_padding(left: bool) -> None:
    batch = tiny_batch(left=left, pad=4)
    scores = Length().run(tiny_model("llama"), batch)
    expected = [sum(row) for row in batch["attention_mask"].tolist()]
    assert scores.features.flatten().tolist() == expected == [12, 10, 8, 6, 12]
    assert scores.losses is None
    del batch["attention_mask"]
    assert bool((Length().score(tiny_model("llama"), batch) == 16).all())


@pytest.mark.parametrize("name", ["length", "representation"])
def test_a_mask_of_another_shape_is_an_error(name: str) -> None:
    batch = tiny_batch()
    batch["attention_mask"] = batch["attention_mask"][:, None, None]
    with pytest.raises(InputError, match=r"\(5, 12\). Found \(5, 1, 1, 12\)"):
        SCORERS[name]().score(tiny_model("llama"), batch)


# All of them


@pytest.mark.parametrize("scorer", [GradientNorm(), Representation(), Representation(pooling="last"), Logits()])
def test_rows_do_not_see_each_other(scorer: Any) -> None:
    model, batch = tiny_model("llama", lora=True), tiny_batch()
    whole = scorer.score(model, batch)
    rows = torch.cat([scorer.score(model, take(batch, [row])) for row in range(len(whole))])
    assert_close(rows, whole, rtol=1e-6)


@pytest.mark.parametrize("name", ["gradient_norm", "representation", "logits", "length"])
@pytest.mark.parametrize("selector", ["importance", "pivotal"])
def test_a_step_of_training(name: str, selector: str, tmp_path: Path) -> None:
    made = run(trainer(tmp_path, coreset=CoresetConfig(scorer=name, selector=selector), max_steps=1))
    assert made.state.global_step == 1
    assert made.state.log_history[0]["loss"] > 0


# el2n


@LORA
@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi"])
def test_el2n_is_the_length_of_the_errors(kind: str, lora: bool) -> None:
    model, batch = tiny_model(kind, lora=lora), batch_for(kind)
    sums, means = [], []
    for row in range(len(batch["labels"])):
        own = alone(batch, row)
        probabilities = forward(model, own).logits[0].double().softmax(dim=-1)
        errors = []
        for place, label in enumerate(own["labels"][0].tolist()[1:]):
            if label != -100:
                unit = torch.zeros_like(probabilities[place])
                unit[label] = 1
                errors.append(float((probabilities[place] - unit).square().sum().sqrt()))
        sums.append(sum(errors))
        means.append(sum(errors) / max(1, len(errors)))
    for unit, expected in (("token_mean", sums), ("example_mean", means)):
        scores = EL2N().run(model, batch, loss=unit)
        assert_close(scores.features, torch.tensor(expected, dtype=scores.features.dtype).unsqueeze(1))
        assert scores.losses is not None
        assert_close(scores.losses, full_token_losses(model, batch).sum(dim=1))
