"""Which connections to providers are used again? A new one costs a handshake, 50 to 150 ms.

litellm keeps its clients, each with its connections, and finds them by provider, address, key and time-out,
and by the event loop they are used in. Its Router runs every call that waits in a loop of that call's own,
so no such call would ever find a client again. Here it does, whatever the provider. The clients stay
litellm's own, made under its settings and the environment's (certificates, proxies), and kept for an hour.

Calls that wait on OpenAI, or on what is compatible with it, share one ``litellm.client_session`` besides,
whatever their time-outs: httpx by itself would keep 20 connections and open 100 at most. One that the caller
has set stays. A stream of those that is read by waiting ends its connection. One that the provider has closed
since is noticed and replaced; one that it closes at that very moment fails the attempt like any other that
breaks off.
"""

from __future__ import annotations

import functools
import os
from typing import Any

MOST, MOST_IDLE, IDLE_S = 1_000, 100, 60.0  # connections


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
    if litellm.client_session is None and not getattr(litellm, "network_mock", False):
        litellm.client_session = _ours()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_part_from_the_parent)


@functools.cache
def _ours() -> Any:
    import httpx
    from litellm.llms.custom_httpx.http_handler import get_ssl_configuration

    limits = httpx.Limits(max_connections=MOST, max_keepalive_connections=MOST_IDLE, keepalive_expiry=IDLE_S)
    return httpx.Client(verify=get_ssl_configuration(), follow_redirects=True, limits=limits)


def _part_from_the_parent() -> None:
    """A child that wrote to its parent's connections would mix up both their answers."""
    import litellm

    was_ours = litellm.client_session is _ours()
    _ours.cache_clear()
    if was_ours:
        litellm.client_session = _ours()
    litellm.in_memory_llm_clients_cache.flush_cache()
    for name in ("module_level_client", "module_level_aclient"):
        vars(litellm).pop(name, None)  # litellm makes a new one
