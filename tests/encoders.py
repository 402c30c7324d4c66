"""A tiny dual encoder made from a configuration, and a retrieval task of topics: no hub, seconds on one core."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, set_seed

TOPICS, ANSWERS = 4, 6


def tiny_encoder(folder: Path, words: int = 80, *, dropout: float = 0.0) -> SentenceTransformer:
    """One block of 16, over the words w0, w1, ...; the folder keeps its files, which sentence-transformers reads."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1, **{f"w{i}": i + 2 for i in range(words)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    set_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=16, hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
    ).save_pretrained(folder)  # fmt: skip
    body = Transformer(str(folder))
    return SentenceTransformer(modules=[body, Pooling(body.get_embedding_dimension())], device="cpu")


def topical_pairs(seed: int = 0) -> Dataset:
    """Queries and positives of ANSWERS in each of TOPICS: words of the topic and words of the answer."""
    source, rows = random.Random(seed), []
    for topic in range(TOPICS):
        for answer in range(ANSWERS):
            own = [f"w{10 * topic + i}" for i in range(5)]
            marks = [f"w{40 + topic * ANSWERS + answer}"]
            query, passage = (" ".join([*source.sample(own, 3), *marks]) for _ in range(2))
            rows.append({"query": query, "positive": passage})
    return Dataset.from_list(rows)


def scored_triples(seed: int = 0) -> Dataset:
    """Each query with four negatives of its topic, and the teacher's margins."""
    source, pairs = random.Random(seed), topical_pairs(seed)
    rows: list[dict[str, Any]] = []
    for number, pair in enumerate(pairs):
        first = number - number % ANSWERS
        for other in source.sample([i for i in range(first, first + ANSWERS) if i != number], 4):
            margin = source.random() ** 3
            rows.append({**pair, "negative": pairs[other]["positive"], "label": margin})
    return Dataset.from_list(rows)


def bags(texts: list[str]) -> torch.Tensor:
    """Embeddings that know topics: counts of words below 40, by tens."""
    made = torch.zeros(len(texts), TOPICS + 1)
    for row, text in enumerate(texts):
        for word in text.split():
            made[row, min(int(word[1:]) // 10, TOPICS)] += 1
    return made
