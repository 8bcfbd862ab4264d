"""Is an SQLite log still the file that was opened?

SQLite writes on into a file that was deleted or replaced, and all of that is gone with the last program that
holds it open. So the names are looked up before each transaction, which takes some microseconds. When SQLite
opens a file, it writes into it what is left in the write-ahead file beside it: a log that was put in the
place of another is damaged by the rest of that one, unless it is moved away first, as the error says.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from ensemble.errors import LogError

_BESIDE = ("-wal", "-shm")  # the write-ahead file, which holds the newest records, and the index to it

Identity = tuple[int, int] | None


def make_private_file(path: Path) -> None:
    """The file and the folders it needs; only its owner may read it, as it holds personal data."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Never one that exists: closing it would end the locks of all who have it open in this process.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        if not os.access(path, os.R_OK | os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise LogError(
            f"cannot open the log {path}: {error.strerror or error}. Give the path of a file, in a folder "
            "that this process may write."
        ) from error


class LogFile:
    """The files of one open log, known by what they are and not by their names."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._known = {self._path: _identity(self._path)}

    def connected(self) -> None:
        """From now on the files beside it are known, too: whoever has the log open uses the same ones."""
        beside = {self._path + end: _identity(self._path + end) for end in _BESIDE}
        self._known |= {name: found for name, found in beside.items() if found}

    def disconnected(self) -> None:
        """The files beside it may go: whoever is the last to close the log deletes them."""
        for end in _BESIDE:
            self._known.pop(self._path + end, None)

    def check(self) -> None:
        """Raises LogError where a name leads elsewhere, or nowhere."""
        for name, known in self._known.items():
            if (found := _identity(name)) != known:
                became = "replaced" if found else "deleted or moved"
                rest = f", move {name}-wal and {name}-shm away" if name == self._path else ""
                raise LogError(
                    f"the log's file {name} was {became} while it was open: what is written now would be "
                    f"lost. Put it back, or close the log{rest} and open it again."
                )


def _identity(name: str) -> Identity:
    try:
        found = os.stat(name)
    except OSError:
        return None
    return found.st_dev, found.st_ino
