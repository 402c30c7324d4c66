"""A loss of one's own is trained with the rows' weights, or the run is refused by the method's name."""

import copy
import types

import pytest
import torch
import torch.nn.functional as F
from transformers import Trainer, TrainerCallback

from corebatch.errors import ConfigError, CorebatchError, LossMismatchError
from corebatch.trainer import CoresetConfig, CoresetMixin, CoresetTrainer, ScoringConfig
from training import Collator, arguments, mixture, run, tiny_model

DATA = mixture(96, source=False)


def row_losses(model, inputs, power=0.0):
    """[B]: sums of focal token losses; with power 0 the cross-entropy."""
    labels = inputs["labels"][:, 1:]
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1].float()
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
    return ((1 - (-losses).exp()) ** power * losses).sum(dim=1)


class Focal:
    """The documented way; also as a Trainer behind the mixin."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        weights = self.row_weights(inputs)
        loss = (weights * row_losses(model, inputs, 2.0)).sum() / num_items_in_batch
        return (loss, {}) if return_outputs else loss


class InFront(Focal, CoresetTrainer):
    pass


class FocalTrainer(Focal, Trainer):
    pass


class Behind(CoresetMixin, FocalTrainer):
    pass


class Through(CoresetTrainer):
    """Adds what looks at no row to a loss that corebatch weights."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        return super().compute_loss(model, inputs, *args, **kwargs) + 0.1 * decay(model)


class AskedAndThrough(CoresetTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.row_weights(inputs)
        return super().compute_loss(model, dict(inputs), return_outputs, num_items_in_batch)


def decay(model):
    return sum(p.pow(2).sum() for p in model.parameters() if p.requires_grad)


class Gradients(TrainerCallback):
    """Each step's gradient against sum_i weight_i grad L_i M / (N tokens), row by row by autograd."""

    def __init__(self, trainer, power, rest):
        self.trainer, self.power, self.rest, self.errors = trainer, power, rest, []

    def on_pre_optimizer_step(self, args, state, control, **_):
        recorder, model = self.trainer._recorder, self.trainer.model
        weights = recorder.weights or [1.0] * len(recorder.chosen)
        drawn = recorder.chosen + recorder.passed
        tokens = sum(label != -100 for i in drawn for label in DATA[i]["labels"][1:])
        scale = tokens * len(recorder.chosen) / len(drawn)
        rows = [row_losses(model, Collator()([DATA[i]]), self.power)[0] for i in recorder.chosen]
        total = sum(w * row for w, row in zip(weights, rows, strict=True)) / scale
        total = total + self.rest * self.trainer.args.gradient_accumulation_steps * decay(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        wanted = torch.cat([g.flatten() for g in torch.autograd.grad(total, trained)])
        found = torch.cat([p.grad.flatten() for p in trained])
        self.errors.append(float((found - wanted).norm() / wanted.norm()))


def made(kind, folder, coreset=None, model=None, **settings):
    args = arguments(folder, **{"max_grad_norm": 0.0, "max_steps": 3, **settings})
    extra = {"coreset": coreset or CoresetConfig()} if issubclass(kind, CoresetMixin) else {}
    model = model if model is not None else tiny_model(lora=False)
    return kind(model=model, args=args, train_dataset=DATA, data_collator=Collator(), **extra)


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2}])
@pytest.mark.parametrize(
    "kind, power, rest", [(InFront, 2.0, 0.0), (Behind, 2.0, 0.0), (Through, 0.0, 0.1), (AskedAndThrough, 0.0, 0.0)]
)
@pytest.mark.parametrize("accepts, scaled", [(True, None), (False, None), (True, False)])
def test_gradients_are_the_weighted_ones(tmp_path, kind, power, rest, settings, accepts, scaled):
    if scaled is not None and not hasattr(Trainer, "loss_is_scaled_for_ga"):
        pytest.skip("this transformers does not ask")
    trainer = made(kind, tmp_path, **settings)
    trainer.model_accepts_loss_kwargs, trainer.loss_is_scaled_for_ga = accepts, scaled
    divided = not accepts or scaled is False
    steps = trainer.args.gradient_accumulation_steps
    watch = Gradients(trainer, power, rest / steps if divided else rest)
    trainer.add_callback(watch)
    run(trainer)
    assert len(watch.errors) == 3
    assert max(watch.errors) < 1e-4
    logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    recorded = [line["train_loss"] for line in lines(tmp_path)]
    assert recorded == pytest.approx(logged, abs=2e-4)  # the log rounds


def lines(folder):
    import json

    return [json.loads(line) for line in (folder / "selection.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", [InFront, Behind, Through])
def test_with_pool_factor_1_it_is_the_loss_as_written(tmp_path, kind):
    trainer = run(made(kind, tmp_path / "ours", CoresetConfig(pool_factor=1)))

    def through(self, model, inputs, *args, **kwargs):
        return Trainer.compute_loss(self, model, inputs, *args, **kwargs) + 0.1 * decay(model)

    class Plain(Trainer):
        compute_loss = through if kind is Through else Focal.compute_loss

        def row_weights(self, inputs):
            return torch.ones(len(inputs["labels"]))

    plain = run(made(Plain, tmp_path / "plain"))
    for (name, ours), theirs in zip(trainer.model.named_parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


class Unweighted(CoresetTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return row_losses(model, inputs).sum() / num_items_in_batch


class Swallowed(CoresetTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


class MeanOfTokens(CoresetTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        weights = self.row_weights(inputs)
        return (weights * row_losses(model, inputs)).sum() / (inputs["labels"][:, 1:] != -100).sum()


class MeanOfWeights(CoresetTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        weights = self.row_weights(inputs)
        return weights.mean() * row_losses(model, inputs).sum() / num_items_in_batch


class DividedByWeights(CoresetTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        weights = self.row_weights(inputs)
        return (weights * row_losses(model, inputs)).sum() / weights.sum() / num_items_in_batch


class AskedAndUnused(CoresetTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.row_weights(inputs)
        return row_losses(model, inputs).sum() / num_items_in_batch


class NoDenominator(CoresetTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return (self.row_weights(inputs) * row_losses(model, inputs)).sum() / 100


class FocalOfTheMean(CoresetTrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        return (1 - (-loss).exp()) ** 2 * loss


class UnweightedTerm(CoresetTrainer):
    """A z-loss, tiny and of every row alike."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        return super().compute_loss(model, inputs, *args, **kwargs) + 1e-6 * logits.logsumexp(-1).pow(2).mean()


class OnlyInTraining(CoresetTrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        if not model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)
        return row_losses(model, inputs).sum() / kwargs["num_items_in_batch"]


class DropsItems(CoresetTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **_):
        return super().compute_loss(model, inputs, return_outputs)


class FocalUnweighted(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return row_losses(model, inputs, 2.0).sum() / num_items_in_batch


class MixedIn(CoresetMixin, FocalUnweighted):
    pass


class InFrontUnweighted(FocalUnweighted, CoresetTrainer):
    pass


@pytest.mark.parametrize("selector", ["pivotal", "random"])
@pytest.mark.parametrize(
    "kind, says",
    [
        (Unweighted, "does not take them"),
        (Swallowed, "does not take them"),
        (MeanOfTokens, "mean over the tokens"),
        (MeanOfWeights, "not linear"),
        (DividedByWeights, "not linear"),
        (AskedAndUnused, "same with weights of zero and of one"),
        (NoDenominator, "not divided by num_items_in_batch"),
        (FocalOfTheMean, "not linear"),
        (UnweightedTerm, "depends on rows and not on their weights"),
        (OnlyInTraining, "does not take them"),
        (DropsItems, "num_items_in_batch"),
        (MixedIn, "does not take them"),
        (InFrontUnweighted, "does not take them"),
    ],
)
def test_what_is_not_the_claimed_loss_is_refused_by_name(tmp_path, kind, says, selector):
    trainer = made(kind, tmp_path, CoresetConfig(selector=selector))
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(LossMismatchError, match=says) as raised:
        run(trainer)
    named = "FocalUnweighted" if issubclass(kind, FocalUnweighted) else kind.__name__
    assert f"{named}.compute_loss (" in str(raised.value)
    assert "test_own_loss.py:" in str(raised.value)
    assert "row_weights" in str(raised.value)
    assert isinstance(raised.value, CorebatchError)
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


class Diverging(CoresetTrainer):
    """A divergence from the model before training, which is zero at its start."""

    reference = None

    def compute_loss(self, model, inputs, *args, **kwargs):
        asked = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        if self.reference is None:
            type(self).reference = copy.deepcopy(model).eval()
        with torch.no_grad():
            fixed = self.reference(**asked).logits.log_softmax(-1)
        moved = model(**asked).logits.log_softmax(-1)
        divergence = F.kl_div(moved, fixed, log_target=True, reduction="batchmean")
        return super().compute_loss(model, inputs, *args, **kwargs) + 0.1 * divergence


def test_a_divergence_that_starts_at_zero_is_found_at_a_later_step(tmp_path):
    trainer = made(Diverging, tmp_path, max_steps=40)
    with pytest.raises(LossMismatchError, match="depends on rows and not on their weights"):
        run(trainer)
    assert trainer.state.global_step <= 2


class OwnStep(CoresetTrainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        inputs = self._prepare_inputs(inputs)
        loss = row_losses(model, inputs).sum() / num_items_in_batch
        self.accelerator.backward(loss)
        return loss.detach()


class DropsItemsInStep(CoresetTrainer):
    def training_step(self, model, inputs, *_):
        return super().training_step(model, inputs)


class CountsItsOwn(CoresetTrainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        return super().training_step(model, inputs, (inputs["labels"][:, 1:] != -100).sum())


class NoItems(CoresetTrainer):
    def get_batch_samples(self, *args):
        return super().get_batch_samples(*args)[0], None


@pytest.mark.parametrize(
    "kind, says",
    [
        (OwnStep, "were trained without"),
        (DropsItemsInStep, "num_items_in_batch should reach"),
        (CountsItsOwn, "num_items_in_batch should reach"),
        (NoItems, "num_items_in_batch should reach"),
    ],
)
def test_a_step_of_ones_own_that_loses_weights_or_denominator_moves_no_weight(tmp_path, kind, says):
    trainer = made(kind, tmp_path)
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(LossMismatchError, match=says) as raised:
        run(trainer)
    assert f"{kind.__name__}." in str(raised.value)
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


def test_a_method_set_on_the_trainer_or_on_its_class_is_seen(tmp_path, monkeypatch):
    trainer = made(CoresetTrainer, tmp_path / "object")
    trainer.compute_loss = types.MethodType(Unweighted.compute_loss, trainer)
    with pytest.raises(LossMismatchError, match=r"CoresetTrainer.compute_loss \(set on the object\)"):
        run(trainer)
    monkeypatch.setattr(Trainer, "compute_loss", FocalUnweighted.compute_loss)
    with pytest.raises(LossMismatchError, match=r"Trainer.compute_loss \(.*test_own_loss.py"):
        run(made(CoresetTrainer, tmp_path / "class"))


def test_a_wrapper_around_the_method_trains_as_without(tmp_path):
    plain = run(made(CoresetTrainer, tmp_path / "plain"))
    trainer, seen = made(CoresetTrainer, tmp_path / "wrapped"), []
    original = trainer.compute_loss

    def timed(*args, **kwargs):
        seen.append(1)
        return original(*args, **kwargs)

    trainer.compute_loss = timed
    run(trainer)
    assert seen
    for ours, theirs in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


class Counting(InFront):
    calls = 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen, self.by_name = [], {"calls": [0]}

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.calls += 1
        self.seen.append(len(inputs["labels"]))
        self.by_name["calls"][0] += 1
        torch.rand(1)
        return super().compute_loss(model, inputs, *args, **kwargs)


def test_the_check_leaves_no_trace(tmp_path):
    """The trainer's own counts, random numbers and modes are those of a run without it."""
    trainer = made(Counting, tmp_path, model=tiny_model(lora=False, dropout=0.2), max_steps=1)
    states = []
    original = type(trainer).training_step

    class Watched(TrainerCallback):
        def on_step_begin(self, *_, **__):
            states.append(torch.get_rng_state())

    trainer.add_callback(Watched())

    def step(self, *args, **kwargs):
        states.append(torch.get_rng_state())
        return original(self, *args, **kwargs)

    trainer.training_step = types.MethodType(step, trainer)
    run(trainer)
    assert torch.equal(states[0], states[1])
    assert trainer.calls == len(trainer.seen) == trainer.by_name["calls"][0] == 2


def test_bases_in_the_wrong_order_are_refused_where_the_class_is_made():
    with pytest.raises(ConfigError, match=r"CoresetMixin should stand before the Trainer.*Wrong"):
        type("Wrong", (FocalTrainer, CoresetMixin), {})


@pytest.mark.parametrize(
    "coreset, says",
    [
        (CoresetConfig(track_error=1), "track_error"),
        (CoresetConfig(padding_free=True), "padding_free"),
        (CoresetConfig(scoring=ScoringConfig(way="full", reuse=True)), "reuse"),
    ],
)
def test_what_needs_our_loss_is_refused_beside_ones_own(tmp_path, coreset, says):
    with pytest.raises(ConfigError, match=says):
        run(made(InFront, tmp_path, coreset))


def test_row_weights_wants_the_inputs_of_the_loss(tmp_path):
    class Elsewhere(CoresetTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            weights = self.row_weights({"input_ids": inputs["input_ids"].clone()})
            return (weights * row_losses(model, inputs)).sum() / num_items_in_batch

    with pytest.raises(LossMismatchError, match="row_weights should be given the inputs"):
        run(made(Elsewhere, tmp_path))


def test_evaluation_has_weights_of_one(tmp_path):
    trainer = made(InFront, tmp_path)
    trainer.model.eval()
    assert trainer.row_weights({"labels": torch.zeros(3, 2)}).tolist() == [1, 1, 1]
