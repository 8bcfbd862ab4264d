"""What litellm's model map knows of a model string: prices, limits, abilities, its last day."""

from __future__ import annotations

import datetime
import os
from typing import Any

from .records import CatalogEntry

_ABILITY_KEYS = {
    "tools": "supports_function_calling",
    "vision": "supports_vision",
    "json_schema": "supports_response_schema",
    "reasoning": "supports_reasoning",
}
# Kinds of model that answer a prompt with text; an embedding or an image model is no member.
_ANSWERING_MODES = ("chat", "completion", "responses")
# For these litellm would ask a server, or the model hub, instead of its own map.
_ASKS_THE_NETWORK = ("ollama/", "ollama_chat/", "lemonade/", "huggingface/")


def look_up(model: str) -> CatalogEntry | None:
    """What is known of litellm's model string ``model``; None where the map has no such text model.

    The first call imports litellm (one to two seconds). No network is touched: the map that came
    with litellm is read, unless ``LITELLM_LOCAL_MODEL_COST_MAP`` was set otherwise beforehand.
    Prices are the plain ones, without surcharges for long prompts or priority. ``context_window``
    is the map's input limit. Some providers count the output apart and some within; the map doesn't say.
    An ability that the map doesn't mention counts as absent, as litellm itself reads it.
    """
    info, listed = _read_map(model)
    if info is None or (info.get("mode") or "chat") not in _ANSWERING_MODES:
        return None
    return CatalogEntry(
        usd_per_million_input=_per_million(listed.get("input_cost_per_token")),
        usd_per_million_output=_per_million(listed.get("output_cost_per_token")),
        usd_per_million_cached_input=_per_million(listed.get("cache_read_input_token_cost")),
        context_window=_count(info.get("max_input_tokens")),
        max_output_tokens=_count(info.get("max_output_tokens")),
        abilities=frozenset(ability for ability, key in _ABILITY_KEYS.items() if info.get(key)),
        retires=_date(listed.get("deprecation_date")),
    )


def _read_map(model: str) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """litellm's reading of its map for ``model``, and the line of the map itself.

    Both are needed: the reading knows aliases and families, but turns a missing price into 0.
    """
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    if model.startswith(_ASKS_THE_NETWORK):
        line = litellm.model_cost.get(model)
        return line, line or {}
    # litellm prints its list of providers when it meets a name it cannot place.
    was_quiet, litellm.suppress_debug_info = litellm.suppress_debug_info, True
    try:
        info: dict[str, Any] = dict(litellm.get_model_info(model))
    except Exception:  # litellm says "not in the map" with several classes, plain Exception among them
        return None, {}
    finally:
        litellm.suppress_debug_info = was_quiet
    return info, litellm.model_cost.get(info["key"], {})


def _per_million(usd_per_token: object) -> float | None:
    if isinstance(usd_per_token, bool) or not isinstance(usd_per_token, int | float):
        return None
    return round(usd_per_token * 1e6, 9)  # 1.5e-07 * 1e6 is .15, not .15000000000000002


def _count(tokens: object) -> int | None:
    return int(tokens) if isinstance(tokens, int | float) and tokens >= 1 else None


def _date(text: object) -> datetime.date | None:
    try:
        return datetime.date.fromisoformat(str(text))
    except ValueError:  # absent, or not a date: the map's sample entry holds an explanation there
        return None
