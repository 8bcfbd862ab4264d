"""The process that is killed: several threads ask without end, and what has reached one of them is written
down at once.

Forked from a server that holds the imported libraries, so that a process a second can be born and killed.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from pathlib import Path
from typing import Any

from benchmarks.faults_callers import SECOND, STEADY, member
from ensemble.engine import Ensemble
from ensemble.errors import EnsembleError
from ensemble.outcomes import LogMode
from ensemble.pool import Pool

THREADS = 6
ANSWERS, WARNINGS = "answers", "warnings"  # files in the folder, a line for each


def serve(base: str, log: str, log_mode: LogMode, folder: str, name: str) -> None:
    """Ask until killed. What follows a line's writing can't undo it: a killed process's writes stay."""
    answers = os.open(Path(folder, ANSWERS), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    warned = os.open(Path(folder, WARNINGS), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def show(message: Any, *_: Any, **__: Any) -> None:
        os.write(warned, f"{message}\n".encode())

    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # of connections that the server left
    warnings.simplefilter("always", UserWarning)
    warnings.showwarning = show
    pool = Pool([member(SECOND, base), member(STEADY, base)])
    ours = Ensemble(pool=pool, log=log, log_mode=log_mode)

    def work(thread: int) -> None:
        i = 0
        while True:
            i += 1
            try:
                reply = ours.complete(
                    f"{name}-{thread}-{i} What is {i} times {thread}?",
                    willingness_to_pay_usd=0,
                    stream=i % 3 == 0,
                )
                if i % 3 == 0:
                    for _ in reply:
                        pass
            except EnsembleError:  # the database is gone: nobody was called, no answer
                time.sleep(0.02)
                continue
            os.write(answers, f"{reply.decision.id}\n".encode())

    for thread in range(1, THREADS):
        threading.Thread(target=work, args=(thread,), daemon=True).start()
    work(0)
