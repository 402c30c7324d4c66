"""Batch samplers for dual encoders: settings, batches, what is kept, and sentence-transformers' trainer."""

import logging
import pickle
import shutil
from collections import Counter

import pytest
import torch
from datasets import Dataset

from corebatch.errors import ConfigError, DataError, InputError
from corebatch.sampling.dual_encoders import Ngame, TasBalanced

st = pytest.importorskip("sentence_transformers")
from encoders import ANSWERS, bags, scored_triples, tiny_encoder, topical_pairs  # noqa: E402

TOPIC = [number // ANSWERS for number in range(len(topical_pairs()))]


def rising(**settings):
    return Ngame(**{"encode": bags, "curriculum": (1, 2, 3), "refresh": 1, "size": 3, **settings})


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: rising(refresh=0), ConfigError, "refresh should be"),
        (lambda: rising(size=0), ConfigError, "size should be"),
        (lambda: rising(curriculum=()), ConfigError, r"ascending order. Found \[\]"),
        (lambda: rising(curriculum=(3, 2)), ConfigError, r"Found \[3, 2\]"),
        (lambda: rising(curriculum=(-1,)), ConfigError, "at least 0"),
        (lambda: rising(column="text")(topical_pairs(), 4), DataError, "Found the columns query, positive"),
        (lambda: rising(column="label")(scored_triples(), 4), DataError, "hold texts. Found float in row 0"),
        (lambda: rising()(topical_pairs().select(range(3)), 4, drop_last=True), DataError, "Found 3"),
        (lambda: TasBalanced(encode=bags, bins=0), ConfigError, "bins should be"),
        (lambda: TasBalanced(encode=bags)(scored_triples(), 4), ConfigError, "at most the queries, 24. Found 2000"),
        (lambda: tas(margin="margin")(scored_triples(), 4), DataError, "Found the columns query.*margin=None"),
        (lambda: tas(margin="query")(scored_triples(), 4), DataError, "should hold margins"),
        (lambda: tas(per_batch=5)(scored_triples(), 4), ConfigError, "at most the batch size, 4. Found 5"),
        (lambda: tas()(scored_triples(), 25), DataError, "batch of 25 needs as many queries. Found 24"),
        (lambda: tas(encode=None)(scored_triples(), 4), ConfigError, "Found NoneType.*lost its encoder"),
        (lambda: tas(encode=lambda texts: torch.ones(3, 2))(scored_triples(), 4), InputError, r"Found \(3, 2\)"),
        (lambda: tas(encode=lambda t: bags(t) * torch.nan)(scored_triples(), 4), InputError, "finite. Found others in"),
    ],
)
def test_bad_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def tas(**settings):
    return TasBalanced(**{"encode": bags, "topics": 4, **settings})


def test_margins_that_are_not_finite_are_named():
    rows = scored_triples().remove_columns("label").add_column("label", [float("nan")] * 96)
    with pytest.raises(DataError, match="finite margins"):
        tas()(rows, 4)


def test_the_curriculum_doubles_clusters_and_refreshes_them():
    setting = Ngame(encode=bags, curriculum=(10, 25, 50), refresh=5)
    assert [setting.refreshed(epoch) for epoch in (0, 9, 10, 14, 15, 27)] == [None, None, 10, 10, 15, 25]
    assert [setting.rows_of_cluster(epoch) for epoch in (10, 20, 25, 50)] == [2, 2, 4, 8]


@pytest.mark.parametrize("drop_last", [False, True])
def test_every_row_comes_once_and_topics_come_together_as_clusters_grow(drop_last):
    sampler = rising()(topical_pairs(), 5, drop_last=drop_last, seed=1)
    same = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) == (4 if drop_last else 5)
        counts = Counter(row for batch in batches for row in batch)
        assert max(counts.values()) == 1
        assert len(counts) == (20 if drop_last else 24)
        assert batches == list(sampler)
        pairs = [TOPIC[a] == TOPIC[b] for batch in batches for a in batch for b in batch if a < b]
        same.append(sum(pairs) / len(pairs))
    assert same[0] < 0.45 < same[1]


def test_a_batch_of_whole_clusters_has_one_topic():
    sampler = rising(curriculum=(0,))(topical_pairs(), ANSWERS)
    for batch in sampler:
        assert len({TOPIC[row] for row in batch}) == 1


def test_batches_of_tas_have_one_topic_and_each_query_once():
    rows = scored_triples()
    numbers = {query: place for place, query in enumerate(dict.fromkeys(rows["query"]))}
    sampler = tas()(rows, 5, seed=2)
    assert len(sampler) == 5
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        for batch in epochs[-1]:
            own = [numbers[rows[row]["query"]] for row in batch]
            assert len(set(own)) == len(own)
            assert len({TOPIC[query] for query in own}) == 1
    assert [len(batch) for batch in epochs[0]] == [5, 5, 5, 5, 4]
    assert epochs[0] != epochs[1]
    two = [{TOPIC[numbers[rows[row]["query"]]] for row in batch} for batch in tas(per_batch=3, margin=None)(rows, 6)]
    assert max(map(len, two)) > 1
    assert {len(batch) for batch in tas()(rows, 8)} == {8}  # more than a topic has


def test_scores_in_place_of_margins():
    rows = scored_triples()
    scores = Dataset.from_list([{**row, "label": [row["label"] + 2, 2.0]} for row in rows])
    assert list(tas()(rows, 6)) == list(tas()(scores, 6))


def test_clusters_are_kept_and_are_not_those_of_other_data(tmp_path):
    first = rising(folder=tmp_path)(topical_pairs(), 6)
    first.set_epoch(1)
    batches = list(first)
    again = rising(folder=tmp_path, encode=None)(topical_pairs(), 6)
    again.set_epoch(1)
    assert list(again) == batches
    for other, found in (((topical_pairs(1), 6), "digest of the texts"), ((topical_pairs(), 6, False, 1), "seed")):
        made = rising(folder=tmp_path)(*other)
        made.set_epoch(1)
        with pytest.raises(DataError, match=f"another run: its {found}"):
            list(made)


def test_saved_arguments_are_without_the_model():
    for setting in (rising(), tas()):
        assert pickle.loads(pickle.dumps(setting)).encode is None
    lost = pickle.loads(pickle.dumps(rising()))(topical_pairs(), 4)
    lost.set_epoch(1)
    with pytest.raises(ConfigError, match="has lost its encoder"):
        list(lost)


def test_ranks_have_the_clusters_of_the_first(tmp_path, monkeypatch):
    """Of two, this one is the second: it encodes nothing."""
    first = rising()(topical_pairs(), 6)
    first.set_epoch(1)
    expected, held = list(first), first._clusters[1]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)

    def broadcast(objects, src):
        assert objects == [None]
        assert src == 0
        objects[0] = held

    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    second = rising(encode=None)(topical_pairs(), 6)
    second.set_epoch(1)
    assert list(second) == expected


# ---- sentence-transformers' trainer ----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quiet():
    """Their loggers write to the root one, which a run of many tests has at any level."""
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)


def train(folder, setting, rows, loss, model, resume=None, **settings):
    arguments = st.SentenceTransformerTrainingArguments(
        str(folder), per_device_train_batch_size=6, learning_rate=1e-2, seed=3, report_to=[], use_cpu=True,
        batch_sampler=setting, disable_tqdm=True, logging_strategy="no",
        **{"num_train_epochs": 3, "save_strategy": "no", **settings},
    )  # fmt: skip
    made = st.SentenceTransformerTrainer(model=model, args=arguments, train_dataset=rows, loss=loss(model))
    seen, collate = [], made.data_collator
    made.data_collator = lambda features: seen.append([row["query"] for row in features]) or collate(features)
    made.data_collator.valid_label_columns = collate.valid_label_columns
    made.train(resume_from_checkpoint=resume)
    return seen


@pytest.mark.filterwarnings("ignore")
def test_ngame_in_the_trainer_and_resumed_in_the_middle_of_an_epoch(tmp_path):
    loss = st.sentence_transformer.losses.MultipleNegativesRankingLoss
    rows = topical_pairs()
    model = tiny_encoder(tmp_path / "model", dropout=0.1)
    setting = Ngame(encode=model, curriculum=(1,), refresh=1, size=3, folder=tmp_path / "clusters")
    whole = train(tmp_path / "whole", setting, rows, loss, model, save_strategy="steps", save_steps=6)
    assert len(whole) == 12
    for at in (0, 4, 8):
        assert sorted(query for batch in whole[at : at + 4] for query in batch) == sorted(rows["query"])
    assert sorted(path.name for path in (tmp_path / "clusters").iterdir()) == [
        "clusters-1.safetensors", "clusters-2.safetensors",
    ]  # fmt: skip
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "whole" / "checkpoint-6", killed / "checkpoint-6")
    (tmp_path / "clusters" / "clusters-2.safetensors").unlink()
    other = tiny_encoder(tmp_path / "model", dropout=0.1)
    setting = Ngame(encode=other, curriculum=(1,), refresh=1, size=3, folder=tmp_path / "clusters")
    resumed = train(killed, setting, rows, loss, other, str(killed / "checkpoint-6"))
    assert resumed[-6:] == whole[-6:]
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.filterwarnings("ignore")
def test_tas_balanced_in_the_trainer(tmp_path):
    rows = scored_triples()
    model = tiny_encoder(tmp_path / "model")
    teacher = TasBalanced(encode=model, topics=4)
    seen = train(tmp_path / "run", teacher, rows, st.sentence_transformer.losses.MarginMSELoss, model)
    assert len(seen) == 12
    assert all(len(set(batch)) == 6 for batch in seen)


def test_an_encoder_is_left_in_its_mode(tmp_path):
    model = tiny_encoder(tmp_path / "model")
    model.train()
    model[0].eval()
    modes = [module.training for module in model.modules()]
    sampler = rising(encode=model)(topical_pairs(), 6)
    sampler.set_epoch(1)
    assert len(list(sampler)) == 4
    assert [module.training for module in model.modules()] == modes
