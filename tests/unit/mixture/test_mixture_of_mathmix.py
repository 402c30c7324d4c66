"""A real mixture: prompts and completions of nine sources."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from corebatch.mixture import load_mixture, preview_mixture

FOLDER = Path(os.environ.get("COREBATCH_MATHMIX", Path(__file__).parents[4] / "shared" / "data" / "mathmix"))

pytestmark = [
    pytest.mark.mathmix,
    pytest.mark.skipif(not (FOLDER / "train.jsonl").is_file(), reason=f"the mixture mathmix is not at {FOLDER}"),
]


def test_the_whole_mixture(tokenizer: PreTrainedTokenizerFast) -> None:
    mixture = load_mixture([str(FOLDER)], tokenizer, max_length=512)
    assert len(mixture.counts) == 9
    assert sum(counts.rows_read for counts in mixture.counts.values()) == 4043
    rows = mixture.counts["gsm8k"]
    assert rows.rows_read == 931
    assert rows.rows + rows.rows_dropped == 931
    preview = preview_mixture([str(FOLDER)], tokenizer, max_length=512)
    assert list(preview.sources) == list(mixture.counts)
    assert preview.sources["gsm8k"].tokens == pytest.approx(rows.tokens, rel=0.25)


def test_the_other_split(tokenizer: PreTrainedTokenizerFast) -> None:
    mixture = load_mixture([{"path": str(FOLDER), "split": "test[:50]"}], tokenizer)
    assert len(mixture.dataset) == 50
