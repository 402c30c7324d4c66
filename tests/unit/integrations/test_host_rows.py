"""A host's rows keep the source that they came from; options that selection does not go with are named."""

import pytest
from datasets import Dataset

from corebatch.errors import ConfigError, DataError
from corebatch.integrations.options import HostOption, check_options, is_shared
from corebatch.integrations.rows import MOST_SOURCES, with_sources


def tokens(dataset):
    """What a host makes of rows: tokens alone, and here none of rows without text."""
    kept = [row for row in dataset if row["text"]]
    return Dataset.from_dict({"input_ids": [[len(row["text"])] for row in kept]}), "prompter"


def rows(**more):
    return Dataset.from_dict({"text": ["a", "bb", "", "dddd"], **more})


def test_rows_have_the_source_of_their_data_set():
    made, more = with_sources(tokens, rows(), "source", None, "algebra")
    assert more == "prompter"
    assert made.to_dict() == {"input_ids": [[1], [2], [4]], "source": ["algebra"] * 3}


def test_a_source_that_is_given_wins_over_the_rows_own():
    made, _ = with_sources(tokens, rows(source=["x", "y", "x", "y"]), "source", "mine", "algebra")
    assert made["source"][:] == ["mine"] * 3


@pytest.mark.parametrize("values", [["x", "y", "x", "y"], [7, 8, 7, 8]])
def test_rows_own_column_goes_along_though_the_host_drops_rows(values):
    made, _ = with_sources(tokens, rows(domain=values), "domain", None, "algebra")
    assert made.to_dict() == {"input_ids": [[1], [2], [4]], "domain": [str(v) for v in (values[0], *values[1:2] * 2)]}


def test_tokens_that_had_the_column_already_have_it_once():
    own = rows(source=["x", "y", "x", "y"])
    made, _ = with_sources(lambda dataset: (dataset, None), own, "source", None, "algebra")
    assert made["source"][:] == ["x", "x", "y", "y"]


@pytest.mark.parametrize(
    "values, found",
    [
        ([str(n) for n in range(MOST_SOURCES + 1)], f"Found {MOST_SOURCES + 1} values"),
        (["x", None], "Found None"),
        ([0.5, 1.5], "Found 0.5"),
    ],
)
def test_a_column_that_names_no_sources(values, found):
    dataset = Dataset.from_dict({"text": ["a"] * len(values), "source": values})
    with pytest.raises(DataError, match=rf"column 'source' of algebra.*{found}.*coreset.source_column"):
        with_sources(tokens, dataset, "source", None, "algebra")


def test_an_option_is_named_by_the_host_s_key():
    options = (HostOption("packing", "why", "packing: false"), HostOption("ranks", "why", "ranks: 1", is_shared))
    for fine in ({}, {"packing": False, "ranks": 1}, {"packing": "none", "ranks": None}):
        check_options("Host", fine, options)
    with pytest.raises(ConfigError, match=r"packing of Host does not go with.*Found packing: True.*Use packing"):
        check_options("Host", {"packing": True}, options)
    with pytest.raises(ConfigError, match=r"ranks of Host.*Found ranks: 2"):
        check_options("Host", {"ranks": 2}, options)
