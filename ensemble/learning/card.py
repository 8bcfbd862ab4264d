"""What should a person know before trusting a router? The text of CARD.md, from its manifest."""

from __future__ import annotations

from ensemble.bundle import Manifest
from ensemble.learning.tables import OutcomeTable


def write_card(manifest: Manifest, table: OutcomeTable, *, retired: dict[str, str] | None = None) -> str:
    return "\n".join([manifest.name])
