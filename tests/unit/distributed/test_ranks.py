"""Ranks that share a model are refused; with one rank messages are what they would be among many."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from corebatch.distributed.ranks import Ranks
from corebatch.errors import ConfigError, DataError


def accelerator(kind="MULTI_GPU", **sizes):
    return SimpleNamespace(
        process_index=1,
        num_processes=4,
        device=torch.device("cpu"),
        distributed_type=SimpleNamespace(value=kind),
        parallelism_config=SimpleNamespace(**sizes) if sizes else None,
    )


@pytest.mark.parametrize(
    "size, kind",
    [("tp_size", "tensor"), ("cp_size", "context"), ("sp_size", "sequence"), ("pp_size", "pipeline")],
)
def test_ranks_that_share_a_model_are_refused(size, kind):
    with pytest.raises(ConfigError, match=rf"Found {kind} parallelism \({size} = 2\)"):
        Ranks.of(accelerator(**{size: 2}))


def test_megatron_is_refused():
    with pytest.raises(ConfigError, match="Megatron-LM"):
        Ranks.of(accelerator("MEGATRON_LM"))


@pytest.mark.parametrize("sizes", [{}, {"tp_size": 1, "cp_size": 1, "dp_shard_size": 2, "dp_replicate_size": 2}])
def test_data_parallel_ranks_join(sizes):
    ranks = Ranks.of(accelerator("FSDP", **sizes))
    assert (ranks.index, ranks.count) == (1, 4)


def test_one_rank_alone():
    ranks, value = Ranks(), torch.arange(6).reshape(3, 2)
    assert torch.equal(ranks.gather(value), value)
    assert torch.equal(ranks.gather_rows(value, [3], "features"), value)
    assert ranks.gather_texts("ä") == ["ä"]
    assert ranks.largest(3) == 3
    assert ranks.report(None, 1, 2).tolist() == [[1, 2]]
    assert ranks.take_sent() == {}
    own = DataError("a damaged row")
    with pytest.raises(DataError) as raised:
        ranks.report(own)
    assert raised.value is own
    with pytest.raises(DataError, match="a damaged row"), ranks.together("Loading"):
        raise own
