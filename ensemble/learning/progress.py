"""How does a long run show how far it is? A bar on stderr, and a line where a step begins."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Step = Callable[[str], None]


@contextlib.contextmanager
def bar(shown: bool, total: int, label: str) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, or nothing; gives the function that advances it."""
    if not (shown and total):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda: progress.advance(task)
