"""`corebatch bench`: the commands."""

from __future__ import annotations

import typer

from corebatch.cli.bench_gradients import gradients
from corebatch.cli.bench_step import step

app = typer.Typer(no_args_is_help=True, help="Measure selection on your own model and data.")


@app.callback()
def _several() -> None:
    """Measure selection on your own model and data."""


app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(gradients)
app.command()(step)
