"""Where does the blocking work of asyncio's callers run? In threads of our own, so that it neither holds up
the event loop nor takes the threads that the application's own work is meant for."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

MOST_THREADS = 64  # so many prompts can be encoded together; who comes while all are busy waits its turn


async def in_thread(work: Callable[..., Any], *arguments: Any) -> Any:
    """``asyncio.to_thread`` in our threads, but a cancellation waits for the work: nothing may go on behind
    our back."""
    run = functools.partial(contextvars.copy_context().run, work, *arguments)
    task = asyncio.get_running_loop().run_in_executor(_threads(os.getpid()), run)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        task.cancelled() or task.exception()  # looked at, so that asyncio doesn't complain of it
        raise


@functools.lru_cache(1)
def _threads(process: int) -> ThreadPoolExecutor:
    """Made anew in a forked child, which has none of its parent's threads."""
    return ThreadPoolExecutor(MOST_THREADS, thread_name_prefix=f"ensemble-{process}")
