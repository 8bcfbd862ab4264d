"""How is a file read that somebody else may have put there? Only a plain one, and never more than asked for.

A pipe in its place would keep its reader for ever, a device would never end.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader

# On some systems not all of them exist; there a pipe has no name in a folder either.
_FLAGS = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def open_plain(path: str | os.PathLike[str], *, follow_link: bool = True) -> BufferedReader:
    """The file, open to be read. Raises OSError where there is none, or something else in its place."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _FLAGS | (0 if follow_link else _NO_LINK))
    except ValueError as error:  # a NUL in its name
        raise FileNotFoundError(errno.ENOENT, str(error), os.fspath(path)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a plain file", os.fspath(path))
    return open(descriptor, "rb")


def read_plain(path: str | os.PathLike[str], most_bytes: int, *, follow_link: bool = True) -> bytes:
    """The file's first ``most_bytes``; raises as ``open_plain`` does."""
    with open_plain(path, follow_link=follow_link) as file:
        return file.read(most_bytes)
