"""The command line: ``ensemble route | ask | collect | train | evaluate | encoder | log | demo``.

Every command takes ``--json`` and prints one JSON document then. Errors of ours end with status 1 and
one message; commands that learn import their extras when they run, and name the extra that is missing.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ensemble import __version__
from ensemble.errors import EnsembleError

if TYPE_CHECKING:
    from ensemble.outcomes import OutcomeLog

_LAZY = {
    "collect": "ensemble.cli_collect",
    "train": "ensemble.cli_learning",
    "evaluate": "ensemble.cli_learning",
    "encoder": "ensemble.cli_learning",
    "log": "ensemble.cli_log",
    "demo": "ensemble.demo",
}


class _Commands(click.Group):
    """Finds the commands of other files without importing them before they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *_LAZY]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in _LAZY:
            command: click.Command = getattr(importlib.import_module(_LAZY[name]), name)
            return command
        return super().get_command(ctx, name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EnsembleError as error:
            raise click.ClickException(str(error)) from error


class Dial(click.ParamType[float]):
    """USD per unit of reward: a number of at least 0, or ``inf``."""

    name = "usd"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            dial = float(value)
        except ValueError:
            dial = math.nan
        if not dial >= 0:
            self.fail(f"expected a number of at least 0, or inf; found {value!r}", param, ctx)
        return dial


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)


def print_json(plain: Any) -> None:
    click.echo(json.dumps(plain, indent=1, default=str))


def _asking_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options: list[Callable[[Callable[..., Any]], Callable[..., Any]]] = [
        click.argument("prompt"),
        click.option("--router", type=click.Path(), help="A router's folder, if not the settings'."),
        click.option("--pool", type=click.Path(), help="A pool file, if not the settings'."),
        click.option("--willingness-to-pay", "willingness_to_pay_usd", type=Dial(), metavar="USD",
                     help="USD one unit of reward is worth, or inf. [default: the pool's]"),
        click.option("--usd-per-second", type=float, help="What a second of waiting costs."),
        click.option("--max-cost", "max_cost_usd", type=float, metavar="USD",
                     help="Cap of the call's cost, its input estimated."),
        click.option("--max-latency", "max_latency_s", type=float, metavar="S", help="Deadline of the call."),
        click.option("--min-reward", type=float, help="Least expected reward, 0 to 1."),
        click.option("--member", "members", multiple=True, help="Only this member; may be repeated."),
        click.option("--exclude", multiple=True, help="Not this member; may be repeated."),
        click.option("--owned-only", is_flag=True, default=None, help="Only members nobody can take away."),
        json_option,
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ensemble")
def main() -> None:
    """Send each prompt to the model that will answer best per dollar, and learn from what happens."""
    warnings.formatwarning = lambda message, *rest, **more: f"warning: {message}\n"


@main.command()
@_asking_options
def route(prompt: str, router: str | None, pool: str | None, as_json: bool, **wishes: Any) -> None:
    """Show who would answer PROMPT by prediction and price, and why ('-' reads standard input).

    Nobody is called and nothing logged; budgets, API keys, failures and speeds of late are not looked at.
    """
    with _ensemble(router, pool, log=False, budgets=()) as opened:  # without a log none is known of
        decision = opened.route(_read(prompt), **_given(wishes))
    if as_json:
        print_json(decision.as_dict())
    else:
        from ensemble.show import console, decision_table

        console().print(decision_table(decision))


@main.command()
@_asking_options
@click.option("--max-tokens", type=click.IntRange(min=1), help="Longest answer.")
@click.option("--metadata", multiple=True, metavar="NAME=VALUE", help="For the log, and for budgets.")
def ask(
    prompt: str,
    router: str | None,
    pool: str | None,
    max_tokens: int | None,
    metadata: tuple[str, ...],
    as_json: bool,
    **wishes: Any,
) -> None:
    """Send PROMPT to the best member, print its answer, and log the outcome ('-' reads standard input)."""
    params: dict[str, Any] = {"metadata": labels(metadata)} if metadata else {}
    params |= {} if max_tokens is None else {"max_tokens": max_tokens}
    with _ensemble(router, pool) as opened:
        reply = opened.complete(_read(prompt), **_given(wishes), **params)
        decision = reply.decision
    if as_json:
        print_json({"answer": reply.choices[0].message.content, "decision": decision.as_dict()})
        return
    from ensemble.show import explain

    click.echo(reply.choices[0].message.content)
    click.echo(f'\n{explain(decision)}\nfeedback: ensemble.feedback("{decision.id}", reward)', err=True)


def labels(pairs: Iterable[str]) -> dict[str, Any]:
    """Metadata from NAME=VALUE, where a value is JSON or else a text."""
    return dict(_pair(text) for text in pairs)


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise click.UsageError(f"--metadata: expected NAME=VALUE, found {text!r}.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def open_log(place: str) -> OutcomeLog:
    """A log that is there: where its path is mistyped, none is made."""
    from ensemble.outcomes import OutcomeLog

    if "://" not in place and not Path(place).expanduser().is_file():
        raise click.UsageError(f"LOG: expected a log's path or URL, found no file {place}.")
    return OutcomeLog.open(place)


def _ensemble(router: str | None, pool: str | None, **settings: Any) -> Any:
    from ensemble.config import find_settings
    from ensemble.engine import Ensemble

    given = {name: value for name, value in (("router", router), ("pool", pool)) if value is not None}
    return Ensemble(**{**find_settings(), **given, **settings})


def _given(wishes: dict[str, Any]) -> dict[str, Any]:
    """The options that were used; a repeated one that wasn't is an empty tuple."""
    return {name: value for name, value in wishes.items() if value is not None and value != ()}


def _read(prompt: str) -> str:
    return sys.stdin.read() if prompt == "-" else prompt


if __name__ == "__main__":
    main()
