"""Which connections to providers are used again? All that can be: a new one costs a handshake, 50 to 150 ms.

litellm keeps its clients, each with its connections, and finds them by provider, address, key and time-out,
and by the event loop they are used in. Its Router runs every call that waits in a loop of that call's own,
so no such call would ever find a client again. Here it does, whatever the provider. The clients stay
litellm's own: made under its settings and the environment's (certificates, proxies), kept for an hour, and
the caller's ``litellm.client_session`` where there is one.

A client that waits has httpx's own limits: up to 100 connections, and who comes while all are busy waits
within its time-out; up to 20 of them stay open, for 5 s after their last use. A ``litellm.client_session``
brings its own, for OpenAI and what is compatible with it; a stream of those that is read by waiting ends its
connection. A connection that the provider has closed since is noticed and replaced; one that it closes at
that very moment fails the attempt like any other that breaks off.
"""

from __future__ import annotations

import functools
import os


@functools.cache
def share_connections() -> None:
    """From now on calls that wait share their clients. Once is enough; a forked child makes its own."""
    import litellm

    clients = litellm.in_memory_llm_clients_cache

    def kept_under(key: str) -> str:
        if "is_async=False" in key or key.startswith("httpx_client"):  # OpenAI's kind, or litellm's own
            return f"{key}-{id(litellm.client_session)}"  # a session set later holds at once
        return str(type(clients).update_cache_key_with_event_loop(clients, key))

    clients.update_cache_key_with_event_loop = kept_under
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_part_from_the_parent)


def _part_from_the_parent() -> None:
    """A child that wrote to its parent's connections would mix up both their answers."""
    import litellm

    litellm.in_memory_llm_clients_cache.flush_cache()
    for name in ("module_level_client", "module_level_aclient"):
        vars(litellm).pop(name, None)  # litellm makes a new one
