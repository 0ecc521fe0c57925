"""The command `weft`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, cast, get_args

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.console import Console

from weftd.load import Transport
from weftd.model_commands import app as models
from weftd.settings import ServiceName, Settings, misspelt

__all__ = ["main"]

Result = TypeVar("Result")

app = typer.Typer(
    name="weft",
    help="Weft, a self-hosted AI assistant. Settings come from the environment: see docs/operations.md.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
evaluate = typer.Typer(help="Measures answers and retrieval on a file of questions.", no_args_is_help=True)
app.add_typer(evaluate, name="eval")
app.add_typer(models, name="models")
_console = Console(stderr=True)


# What gRPC itself logs is for those who mend gRPC, and no JSON: only its errors.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


def main() -> None:
    """Runs the command; an error that is the user's to mend is one line, not a traceback."""
    from weftd.compose import CannotStart
    from weftd.errors import WeftError

    for name, meant in misspelt(os.environ).items():
        _console.print("!", f"{name} is no setting and does nothing: is {meant} meant?", highlight=False)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except ValidationError as error:
        for problem in error.errors():
            name = "_".join(["WEFT", *map(str, problem["loc"])]).upper()
            message = problem["msg"].removeprefix("Value error, ")
            said = f"{name}: {message}" if problem["loc"] else message
            _console.print("✗", said, highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)
    except SettingsError as error:
        _fail(f"{error}. Lists are written as JSON: see docs/operations.md.")
    except CannotStart as error:
        _fail(str(error))
    except WeftError as error:
        _fail(error.message)


def _fail(message: str) -> NoReturn:
    _console.print("✗", message, highlight=False, markup=False, soft_wrap=True)
    sys.exit(1)


def _run(program: Coroutine[Any, Any, Result]) -> Result:
    # For what serves calls. What starts children has asyncio's own loop: uvloop's forks run the hooks of
    # every library, and gRPC and LanceDB complain of them.
    import uvloop

    return uvloop.run(program)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"weft {version('weftd')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Prints it, and ends.")
    ] = False,
) -> None: ...


@app.command()
def up(
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes with all services.")] = 1,
    triton: Annotated[bool, typer.Option("--triton", help="Models are served by a Triton here.")] = False,
) -> None:
    """Runs the whole mesh here: all services, the job process and Envoy."""
    from weftd.rpc.telemetry import configure_logging
    from weftd.up import up as run_up

    configure_logging("warning")
    asyncio.run(run_up(Settings(), workers, _console, triton=triton))


@app.command()
def restart() -> None:
    """Exchanges the processes of a running `weft up` or `weft serve … --workers` one by one, under load."""
    from weftd.control import ask

    async def show() -> None:
        async for line in ask(Settings().data):
            _console.print(line, highlight=False, markup=False)

    asyncio.run(show())


@app.command()
def serve(
    services: Annotated[list[str], typer.Argument(help="Any of: " + " ".join(get_args(ServiceName)))],
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Processes, kept running. None: this one alone.")
    ] = None,
) -> None:
    """Runs some services at the addresses of the settings (WEFT_CHAT_ADDRESS, …)."""
    unknown = sorted(set(services) - set(get_args(ServiceName)))
    if unknown:
        _fail(f"There is no service {', '.join(unknown)}. There are: {' '.join(get_args(ServiceName))}.")
    names = list(dict.fromkeys(cast("list[ServiceName]", services)))
    if workers is not None:
        from weftd.rpc.telemetry import configure_logging
        from weftd.serve_workers import serve_workers

        configure_logging("warning")
        asyncio.run(serve_workers(Settings(), names, workers, _console))
        return
    from weftd.programs import serve as run_serve

    _run(run_serve(Settings(), names))


@app.command()
def jobs() -> None:
    """Runs the job process: it indexes and purges."""
    from weftd.priority import give_way
    from weftd.programs import run_jobs

    give_way()
    asyncio.run(run_jobs(Settings()))


@app.command()
def triton() -> None:
    """Runs NVIDIA's Triton here, with the models of the settings, at the address of WEFT_TRITON_URL."""
    from weftd.local_triton import run_triton

    asyncio.run(run_triton(Settings()))


@app.command()
def envoy() -> None:
    """Runs Envoy alone, in front of services that run elsewhere."""
    from weftd.programs import run_envoy

    asyncio.run(run_envoy(Settings()))


@app.command()
def token(
    tenant: Annotated[str, typer.Option(help="Whose data the bearer sees.")] = "default",
    subject: Annotated[str, typer.Option(help="Who the bearer is.")] = "developer",
    role: Annotated[str, typer.Option(help="member, editor or operator.")] = "operator",
    hours: Annotated[float, typer.Option(min=0.001, max=24 * 365, help="How long it is valid.")] = 12,
) -> None:
    """Prints a development token, signed with the mesh's own key."""
    from weftd.compose import make_token

    settings = Settings()
    is_first = not settings.jwks.exists()
    made = make_token(settings, tenant=tenant, subject=subject, role=role, lifetime_s=hours * 3600)
    if is_first:
        _console.print("!", f"There was no key yet: {settings.jwks} is new.", highlight=False, soft_wrap=True)
    typer.echo(made)


@app.command()
def load(
    address: Annotated[
        str | None,
        typer.Option(
            help="host:port of the mesh, or https://host for TLS. None: the port of WEFT_PORT here.",
            envvar="WEFT_ADDRESS",
        ),
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="With TLS: whom to trust (PEM).")
    ] = None,
    transport: Annotated[Transport, typer.Option(help="How to ask.")] = "grpc",
    callers: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Closed loop: each asks again when it is answered.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.01, max=100_000, help="Open loop: turns a second, answered or not.")
    ] = None,
    duration: Annotated[float, typer.Option(min=0.1, max=86_400, help="Seconds that are measured.")] = 10,
    requests: Annotated[
        int | None, typer.Option(min=1, help="Turns to measure, instead of a duration.")
    ] = None,
    warm_up: Annotated[float, typer.Option(min=0, help="Seconds before, which do not count.")] = 1,
    question: Annotated[list[str] | None, typer.Option(help="May be given several times: in turn.")] = None,
    processes: Annotated[
        int, typer.Option(min=1, max=64, help="Where one core is too little to make the load.")
    ] = 1,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Asks a running mesh under load: turns per second, p50, p95 and p99, first token, errors.

    Exit status: 0 where every turn was answered, 3 where some were not, 1 where it could not begin.
    """
    from weftd.load.command import load as run_load
    from weftd.load.command import token as load_token
    from weftd.load.processes import shares
    from weftd.load.run import CannotLoad, Plan
    from weftd.load.target import target

    if callers is not None and rate is not None:
        _fail("--callers is a closed loop and --rate an open one: give one of them.")
    if not all(0 < len(each) <= 32_000 for each in question or []):
        _fail("--question has 1 to 32,000 characters.")
    try:
        plan = Plan(
            transport=transport,
            target=target(address or f"127.0.0.1:{Settings().port}", ca.read_bytes() if ca else None),
            token=load_token(),
            questions=tuple(question or ["What is the notice period?"]),
            callers=callers or processes,
            rate=rate,
            duration_s=duration,
            requests=requests,
            warm_up_s=warm_up,
        )
        shares(plan, processes)
    except ValueError as error:
        _fail(str(error))
    try:
        status = _run(run_load(plan, processes, machine_readable=json, console=_console))
    except CannotLoad as error:
        _fail(str(error))
    sys.exit(status)


@evaluate.command("retrieval")
def evaluate_retrieval(file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)]) -> None:
    """Recall of dense, lexical and fused search on FILE (HotpotQA, MuSiQue or SQuAD format)."""
    from weftd.evaluation.commands import retrieval

    _run(retrieval(Settings(), file, Console()))


@evaluate.command("answers")
def evaluate_answers(file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)]) -> None:
    """Whether questions are answered when the passages hold the answer, and are not when they do not."""
    from weftd.evaluation.commands import answers

    _run(answers(Settings(), file, Console()))


if __name__ == "__main__":
    main()
