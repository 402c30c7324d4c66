"""`corebatch mixture search`: shares of sources by Bayesian optimisation over short runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from corebatch.cli.console import console
from corebatch.cli.train_commands import CONFIG

app = typer.Typer(no_args_is_help=True, help="Find out how often the sources of a mixture should come.")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def search(context: typer.Context, config: CONFIG) -> None:
    """Search for the shares with the least held-out loss, by short runs first (the config's block `search`)."""
    from corebatch.config.values import read_values

    run(*read_values(config, context.args), console())


def run(values: dict[str, Any], where: str, terminal: Any) -> Path:
    """Runs the search of a config, or what of it is missing, and returns its folder.

    Raises:
        ConfigError: settings that do not go together, or a folder that holds something else.
        MissingExtraError: BoTorch is not installed.
    """
    from corebatch.bench.search.bayes import require_botorch
    from corebatch.bench.search.engine import search as find
    from corebatch.bench.search.from_config import search_of
    from corebatch.bench.search.page import CONFIG as FOUND
    from corebatch.bench.search.page import LEFT, TEXT, tables, write_outputs
    from corebatch.rendering.sheet import rich_table
    from corebatch.text import say

    require_botorch()
    setup = search_of(values, where, terminal)
    made = write_outputs(setup, *find(setup))
    for sheet in tables(made):
        terminal.print(rich_table(sheet, LEFT))
    say(terminal, f"What was found is in {setup.folder / TEXT}; {setup.folder / FOUND} trains with it")
    return setup.folder
