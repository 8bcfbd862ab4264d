"""Where does blocking work run that nobody should stand still for? In threads of our own, so that it neither
holds up asyncio's loop nor takes the threads that the application's own work is meant for."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
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


def in_own_thread(work: Callable[[], Any]) -> Future[Any]:
    """Begin ``work``, with the caller's context variables, in a thread that is there for it alone: what takes
    long takes no other's place, and doesn't hold up the end of the process. It can't be cancelled."""
    future, context = Future[Any](), contextvars.copy_context()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(context.run(work))
        except BaseException as error:  # the one who waits is told
            future.set_exception(error)

    threading.Thread(target=run, name="ensemble-call", daemon=True).start()
    return future


@functools.lru_cache(1)
def _threads(process: int) -> ThreadPoolExecutor:
    """Made anew in a forked child, which has none of its parent's threads."""
    return ThreadPoolExecutor(MOST_THREADS, thread_name_prefix=f"ensemble-{process}")
