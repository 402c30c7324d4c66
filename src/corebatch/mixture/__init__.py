"""Reads a mixture of data sources into one tokenised `datasets.Dataset`.

    mixture = load_mixture([{"path": "algebra.jsonl"}, {"path": "geometry.parquet", "weight": 0.5}],
    tokenizer) trainer = CoresetTrainer(..., train_dataset=mixture.dataset,
    data_collator=PaddingCollator(tokenizer))

spec -> reading (files, folders, hub) -> formats (rows to four canonical forms) -> tokenise -> weights ->
load. `preview_mixture` reads and checks everything and tokenises a sample only.
"""

from corebatch.mixture.collator import PaddingCollator
from corebatch.mixture.formats import FORMS, Chat, Completion, Form, Text, TokenIds, canonical, detect_form
from corebatch.mixture.load import Mixture, load_mixture
from corebatch.mixture.parallel import check_processes
from corebatch.mixture.preview import MixturePreview, SourcePreview, preview_mixture
from corebatch.mixture.spec import DatasetSpec, parse_spec, parse_specs
from corebatch.mixture.store import row_lengths, row_sources
from corebatch.mixture.tally import SourceCounts
from corebatch.mixture.template import PLAIN_CHAT_TEMPLATE, attach_template
from corebatch.mixture.tokenise import TokeniseOptions, TokenRow, tokenise_row

__all__ = [
    "FORMS",
    "PLAIN_CHAT_TEMPLATE",
    "Chat",
    "Completion",
    "DatasetSpec",
    "Form",
    "Mixture",
    "MixturePreview",
    "PaddingCollator",
    "SourceCounts",
    "SourcePreview",
    "Text",
    "TokenIds",
    "TokenRow",
    "TokeniseOptions",
    "attach_template",
    "canonical",
    "check_processes",
    "detect_form",
    "load_mixture",
    "parse_spec",
    "parse_specs",
    "preview_mixture",
    "row_lengths",
    "row_sources",
    "tokenise_row",
]
