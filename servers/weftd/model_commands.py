"""`weft models`: versions of Triton's models, published, listed, gone back to and watched."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer
from rich.console import Console

__all__ = ["app"]

T = TypeVar("T")

app = typer.Typer(help="Versions of the models that Triton serves.", no_args_is_help=True)
_errors: Final = Console(stderr=True)
_out: Final = Console(soft_wrap=True, highlight=False, markup=False)

Address = Annotated[
    str | None,
    typer.Option(
        help="host:port of the mesh, or https://host for TLS. None: the port of WEFT_PORT here.",
        envvar="WEFT_ADDRESS",
    ),
]
Model = Annotated[str, typer.Argument(help="As `weft models list` names it.")]


@app.command()
def publish(
    model: Model,
    directory: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="A version: model.py and what it needs.")
    ],
    address: Address = None,
) -> None:
    """Publishes DIRECTORY as the next version of MODEL: checked, then served instead of the one before."""
    from weftd import model_calls

    done = _run(model_calls.publish(model, directory, address, _errors))
    _out.print(f"{done.model} version {done.version} serves now ({done.bytes:,} bytes).")


@app.command("list")
def list_models(address: Address = None) -> None:
    """Which models there are, the version of each that serves, and those that are kept."""
    from rich.table import Table

    from weftd import model_calls

    table = Table("model", "serves", "kept", box=None, pad_edge=False)
    for each in _run(model_calls.list_versions(address)).models:
        serves = str(each.served) if each.served else f"none: {each.reason}"
        table.add_row(each.model, serves, " ".join(map(str, each.versions)))
    _out.print(table)


@app.command()
def rollback(
    model: Model,
    version: Annotated[int, typer.Option(min=0, help="One that is kept. 0: the one before.")] = 0,
    address: Address = None,
) -> None:
    """Serves an older version of MODEL again, under a new number."""
    from weftd import model_calls

    done = _run(model_calls.rollback(model, version, address))
    _out.print(f"{done.model} version {done.version} serves now, with the files of {done.source_version}.")


@app.command()
def watch(address: Address = None) -> None:
    """Prints which version of each model serves, now and as it changes, until Ctrl-C."""
    from weftd import model_calls

    _run(model_calls.watch(address, _out.print))


def _run(call: Coroutine[Any, Any, T]) -> T:
    """One line for what the operator has to mend."""
    import asyncio

    from weft.errors import WeftError

    try:
        return asyncio.run(call)
    except WeftError as error:
        said = error.message
    except OSError as error:
        said = f"{error.strerror}: {error.filename}"
    _errors.print("✗", said, highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(1)
