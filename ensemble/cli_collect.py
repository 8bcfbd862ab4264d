"""``ensemble collect``: from prompts and a pool to an outcome table, the price stated first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ensemble.cli import json_option, print_json
from ensemble.show import usd

if TYPE_CHECKING:
    from ensemble.learning.collect import Collected
    from ensemble.learning.plan import Plan


@click.command()
@click.argument("prompts", type=click.Path(exists=True, dir_okay=False))
@click.option("--pool", required=True, type=click.Path(exists=True, dir_okay=False), help="The pool file.")
@click.option("--scorer", required=True, metavar="MODULE:FUNCTION", help="Or FILE.py:FUNCTION.")
@click.option(
    "--budget-usd", required=True, type=click.FloatRange(min=0), help="Never exceeded, over all runs."
)
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="The outcome table (Parquet).")
@click.option("--member", "members", multiple=True, help="Only this member; may be repeated.")
@click.option(
    "--max-tokens", default=1024, show_default=True, type=click.IntRange(min=1), help="Longest answer."
)
@click.option(
    "--concurrency", default=8, show_default=True, type=click.IntRange(min=1), help="Calls at once."
)
@click.option("--yes", is_flag=True, help="Don't ask before spending.")
@json_option
def collect(
    prompts: str,
    pool: str,
    scorer: str,
    budget_usd: float,
    out: str,
    members: tuple[str, ...],
    max_tokens: int,
    concurrency: int,
    yes: bool,
    as_json: bool,
) -> None:
    """Put every line of PROMPTS (JSONL) to every member, score the answers, write an outcome table.

    A line is {"prompt": "..."} or {"messages": [...]}, with an "id" and a "task" if you have them; the
    scorer gets it whole, with the answer. Run it again to go on where it was stopped.
    """
    from ensemble import catalog
    from ensemble.learning.collect import collect as run
    from ensemble.learning.scoring import load_scorer
    from ensemble.pool import Pool

    def agree(plan: Plan) -> bool:
        _show_plan(plan)
        return yes or not plan.pairs or click.confirm("Go ahead?", err=True)

    done = run(
        prompts,
        Pool.load(pool, catalog.look_up),
        load_scorer(scorer),
        out,
        budget_usd=budget_usd,
        max_tokens=max_tokens,
        concurrency=concurrency,
        members=members or None,
        progress=not as_json,
        on_plan=agree,
    )
    if as_json:
        print_json(done.as_dict())
    else:
        _show_end(done)


def _show_plan(plan: Plan) -> None:
    """On standard error: --json leaves standard output to the document."""
    for member in plan.members:
        click.echo(
            f"{member.member}: {member.pairs:,} prompts to ask, {member.answered:,} answered; "
            f"about {usd(member.expected_usd)} USD, at most {usd(member.most_usd)}",
            err=True,
        )
    click.echo(
        f"in all {plan.pairs:,} calls, about {usd(plan.expected_usd)} USD, at most {usd(plan.most_usd)}; "
        f"the budget is {usd(plan.budget_usd)}, of which {usd(plan.spent_usd)} is spent\n({plan.assumption})",
        err=True,
    )


def _show_end(done: Collected) -> None:
    assumed = f", {usd(done.assumed_usd)} of it assumed" if done.assumed_usd else ""
    click.echo(
        f"{done.stopped}: {done.answered:,} answers in this run, {done.left:,} left; "
        f"{usd(done.spent_usd)} USD spent in all{assumed}"
    )
    failures: dict[str, Any] = {
        name: f"{f.count} failed, e.g. {f.example}" for name, f in done.failures.items()
    }
    for name, why in {**failures, **done.given_up}.items():
        click.echo(f"  {name}: {why}")
    if done.rows:
        click.echo(f"{done.out}: {done.rows:,} rows. The answers are in {done.journal}")
        click.echo(f"next: ensemble train --data {done.out} --out routers/mine")
