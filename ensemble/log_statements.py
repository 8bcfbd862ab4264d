"""Every sentence that the log says to its database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import sqlalchemy as sa


class Insert(NamedTuple):
    """An insert in the driver's own words; ``columns`` in the order of its marks, unless those are named.

    Said past SQLAlchemy's types, which cost three times what the database does: JSON goes in as text.
    """

    sql: str
    columns: tuple[str, ...]
    by_name: bool

    def values(self, row: Mapping[str, Any]) -> tuple[Any, ...] | dict[str, Any]:
        """What the driver takes of a row (column -> value); a column that it lacks becomes NULL."""
        if self.by_name:
            return {column: row.get(column) for column in self.columns}
        return tuple([row.get(column) for column in self.columns])


def inserts(tables: Any, dialect: sa.Dialect) -> dict[str, Insert]:
    """By the table's name."""
    said = {}
    for name, table in tables.items():
        columns = list(table.columns.keys())
        compiled: Any = table.insert().compile(dialect=dialect, column_keys=columns)
        in_order = compiled.positiontup if compiled.positional else None
        said[name] = Insert(str(compiled), tuple(in_order or columns), by_name=in_order is None)
    return said


def statements(tables: Any) -> dict[str, sa.Executable]:
    """By name, over the log's ``tables``. Built once per log: SQLAlchemy keeps their SQL compiled."""
    import sqlalchemy as sa
    from sqlalchemy import bindparam as given

    decisions, labels = tables["decisions"].c, tables["labels"].c
    attempts, outcomes, rewards = tables["attempts"].c, tables["outcomes"].c, tables["rewards"].c
    joined = sa.select(
        tables["decisions"], *(column for column in outcomes if column.name != "decision_id")
    ).outerjoin(tables["outcomes"], outcomes.decision_id == decisions.id)
    page = (
        joined.where(sa.tuple_(decisions.created_at, decisions.id) > sa.tuple_(given("at"), given("after")))
        .where(decisions.created_at < given("until"))
        .order_by(decisions.created_at, decisions.id)
        .limit(given("limit"))
    )
    has_reward = sa.exists().where(rewards.decision_id == decisions.id)
    in_force = (
        sa.select(rewards.reward)
        .where(rewards.decision_id == given("decision_id"), rewards.source == given("source"))
        .order_by(rewards.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    new_reward = (given(name, type_=rewards[name].type) for name in ("source", "reward", "recorded_at"))
    spend = sa.select(sa.func.sum(attempts.cost_usd).label("usd")).where(
        attempts.started_at >= given("since")
    )
    latest = sa.select(tables["attempts"]).order_by(attempts.started_at.desc()).limit(given("limit"))
    labelled = (
        sa.select(labels.decision_id)
        .where(labels.digest.in_(given("digests", expanding=True)))
        .group_by(labels.decision_id)
        .having(sa.func.count() == given("n_digests"))
    )
    return {
        # Who rewards the same decision at the same time waits, and sees the other's reward then.
        "hold": sa.select(decisions.id)
        .where(decisions.id == given("decision_id"))
        .with_for_update(key_share=True),
        "one": joined.where(decisions.id == given("id")),
        "page": page,
        "rewarded page": page.where(has_reward),
        "attempts": sa.select(tables["attempts"])
        .where(attempts.decision_id.in_(given("ids", expanding=True)))
        .order_by(attempts.decision_id, attempts.number),
        "rewards": sa.select(tables["rewards"])
        .where(rewards.decision_id.in_(given("ids", expanding=True)))
        .order_by(rewards.id),
        "reward": sa.insert(tables["rewards"]).from_select(
            ["decision_id", "source", "reward", "recorded_at"],
            sa.select(decisions.id, *new_reward)
            .where(decisions.id == given("decision_id"))
            .where(in_force.is_distinct_from(given("reward"))),
        ),
        "last step": sa.select(
            outcomes.served_member,
            outcomes.ended_at,
            outcomes.input_tokens,
            decisions.standing,
            sa.select(attempts.cached_input_tokens)
            .where(attempts.decision_id == decisions.id, attempts.error.is_(None))
            .order_by(attempts.number.desc())
            .limit(1)
            .scalar_subquery()
            .label("cached_input_tokens"),
        )
        .join(tables["decisions"], outcomes.decision_id == decisions.id)
        .where(decisions.session == given("session"), outcomes.served_member.is_not(None))
        .order_by(decisions.created_at.desc())
        .limit(1),
        "latest attempts": latest,
        "spend": spend,
        "spend labelled": spend.where(
            attempts.decision_id.in_(sa.select(labels.decision_id).where(labels.digest == given("digest")))
        ),
        "forget one": sa.delete(tables["decisions"]).where(decisions.id == given("id")),
        "forget older": sa.delete(tables["decisions"]).where(
            decisions.id.in_(
                sa.select(decisions.id)
                .where(decisions.created_at < given("before"))
                .order_by(decisions.created_at)
                .limit(given("limit"))
            )
        ),
        "forget labelled": sa.delete(tables["decisions"]).where(decisions.id.in_(labelled)),
    }
