"""`corebatch subset`: the command's options. What it does is in launch/subset.py, which imports torch."""

from __future__ import annotations

from typing import Annotated

import typer

from corebatch.cli.console import console
from corebatch.cli.train_commands import CONFIG

METHOD = "random, stratified, difficulty, ccs, facility_location, ...; docs/methods/subset.md has all"


def subset(
    context: typer.Context,
    config: CONFIG,
    method: Annotated[str | None, typer.Option(help=METHOD)] = None,
    keep: Annotated[float | None, typer.Option(help="the share of rows that is kept, in (0, 1]")] = None,
    scores: Annotated[
        str | None, typer.Option(help="a .npy file of a number a row, or a column: how hard each row is")
    ] = None,
    output: Annotated[str | None, typer.Option(help="the folder; default: the config's output_dir-subset")] = None,
) -> None:
    """Choose once which rows of the config's data are kept, by its block `subset`; `--key value` pairs change keys."""
    from corebatch.config.values import read_values
    from corebatch.errors import ConfigError
    from corebatch.launch.subset import write_subset

    values, where = read_values(config, context.args)
    block = values.get("subset") or {}
    if not isinstance(block, dict):
        raise ConfigError(f"subset should be a block of keys and values. Found {block!r}.")
    given = {"method": method, "keep": keep, "scores": scores, "output": output}
    values["subset"] = {**block, **{key: value for key, value in given.items() if value is not None}}
    write_subset(values, where, console())
