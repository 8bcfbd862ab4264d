"""What is one hostile input, and what should come of it?"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ensemble.errors import EnsembleError

ROOT = Path(__file__).resolve().parents[1]  # whose place is nobody's business
PATIENCE_S = 60.0  # far more than anything here takes; what takes longer counts as hung


@dataclass(frozen=True)
class Case:
    """``act`` gets an empty folder of its own. It should raise ``error`` with a text in which ``says``, a
    regular expression, is found; where ``error`` is None it should come back unharmed."""

    what: str
    act: Callable[[Path], object]
    error: type[EnsembleError] | None
    says: str = ""

    def got(self, folder: Path) -> tuple[str, bool]:
        """What came of it, in words, and whether that is what should."""
        caught: list[BaseException | None] = []

        def run() -> None:
            try:
                self.act(folder)
            except BaseException as error:
                caught.append(error)
            else:
                caught.append(None)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(PATIENCE_S)
        if not caught:
            return f"still at it after {PATIENCE_S:g} s", False
        error = caught[0]
        if error is None:
            return "served as ever", self.error is None
        text = str(error).replace(str(folder), "...").replace(str(ROOT), "...")
        held = self.error is not None and type(error) is self.error and re.search(self.says, text) is not None
        shown = re.sub(r"[^ -~]", lambda found: ascii(found[0])[1:-1], text[:110])
        return f"{type(error).__name__}: {shown}", held
