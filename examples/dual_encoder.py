"""A small dual encoder learns to find passages, with NGAME's batches in sentence-transformers' own trainer.

    python examples/dual_encoder.py [OUTPUT_DIR]

Needs no hub and seconds on a CPU: the encoder is the mean of word vectors, queries and passages are made here. It is
trained twice, with random batches and with NGAME's; nothing else differs.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import set_seed

from corebatch.sampling.dual_encoders import Ngame

TOPICS, ITEMS, MARKS = 20, 30, 60


def main(folder: str) -> dict[str, float]:
    """The mean reciprocal rank of queries that were not trained, by how batches were made."""
    return {name: learn(f"{folder}/{name}", name) for name in ("random", "ngame")}


def learn(folder: str, batches: str) -> float:
    """Trains, and gives the mean reciprocal rank."""
    source = random.Random(0)
    items = [(topic, source.sample(range(MARKS), 4)) for topic in range(TOPICS) for _ in range(ITEMS)]

    def text(topic: int, marks: list[int]) -> str:
        words = [f"t{topic}_{source.randrange(8)}" for _ in range(3)]
        return " ".join([*words, *(f"m{mark}" for mark in source.sample(marks, 3))])

    passages, trained, asked = ([text(*item) for item in items] for _ in range(3))
    model = encoder()
    ngame = Ngame(encode=model, curriculum=(1, 2, 3), refresh=1, size=2, folder=Path(folder) / "clusters")
    arguments = SentenceTransformerTrainingArguments(
        folder,
        num_train_epochs=8,
        per_device_train_batch_size=30,
        learning_rate=0.03,
        report_to=[],
        save_strategy="epoch",
        save_total_limit=1,
        batch_sampler=ngame if batches == "ngame" else "batch_sampler",
    )
    SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"query": trained, "passage": passages}),
        loss=MultipleNegativesRankingLoss(model),
    ).train()
    sought, found = (
        model.encode(some, convert_to_tensor=True, normalize_embeddings=True) for some in (asked, passages)
    )
    scores = sought @ found.T
    ranks = (scores > scores.diagonal().unsqueeze(1)).sum(dim=1) + 1
    return float((1 / ranks).mean())


def encoder() -> SentenceTransformer:
    """The mean of word vectors, drawn at random."""
    words = [f"t{topic}_{i}" for topic in range(TOPICS) for i in range(8)] + [f"m{mark}" for mark in range(MARKS)]
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, **{word: i + 1 for i, word in enumerate(words)}}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    set_seed(0)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=32)], device="cpu")


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("Mean reciprocal rank:", main(sys.argv[1] if len(sys.argv) > 1 else "runs/dual_encoder"))
