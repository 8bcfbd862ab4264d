"""What could be sent to a provider at all? Asked before anything is decided, or all members seem to fail."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ensemble.errors import InputError
from ensemble.members import described

HEADERS = ("extra_headers", "headers")
TIMEOUTS = ("timeout", "stream_timeout", "request_timeout")
# What litellm keeps to itself of a call, and what may therefore be any object: clients, what signs in or is
# called back, an httpx.Timeout, an SSLContext, an exception to be mocked. All else goes out as JSON.
_OBJECTS = frozenset(
    {
        *TIMEOUTS,
        "aws_bedrock_client",
        "azure_ad_token_provider",
        "callbacks",
        "client",
        "failure_callback",
        "litellm_logging_obj",
        "litellm_metadata",
        "logger_fn",
        "mock_response",
        "shared_session",
        "ssl_verify",
        "success_callback",
    }
)
_HEADER_NAME = re.compile(r"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")
_FIT = "one line of ASCII without spaces around it"
_NO_HEADER = re.compile(r"[\0\n\v\f\r]|^[ \t]|[ \t]$|[^\0-\x7f]")


def check_sendable(params: Mapping[str, Any]) -> None:
    """Raises InputError for parameters that litellm, or its HTTP client, would refuse at every member."""
    for name, value in params.items():
        if name in HEADERS:
            _check_headers(name, value or {})
        elif name not in _OBJECTS and not (name == "response_format" and isinstance(value, type)):
            check_json(name, value)
    if not _fits_a_header(params.get("api_key") or ""):
        raise InputError(f"api_key: expected {_FIT}, found something else. Strip it.")


def check_json(name: str, value: Any) -> None:
    """Raises InputError for what JSON, as it is sent, can't hold. Objects of pydantic can be made JSON."""
    try:
        _STRICT.encode(value).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{name}: expected what JSON can hold, found what it cannot: {error}. Send plain values."
        ) from error


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if callable(dump := getattr(value, "model_dump", None)):
        return dump()
    raise TypeError(f"a value of type {type(value).__name__}")


_STRICT = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_as_json)


def _check_headers(name: str, headers: Mapping[Any, Any]) -> None:
    """Their values may be keys, and are not shown."""
    for header, value in headers.items():
        if not isinstance(header, str) or not _HEADER_NAME.fullmatch(header):
            raise InputError(f"{name}: expected names such as 'x-trace', found {described(header)}")
        if not isinstance(value, bytes) and not _fits_a_header(value):
            raise InputError(
                f"{name}: expected {_FIT} as {described(header)}, found something else. Strip or encode it."
            )


def _fits_a_header(value: Any) -> bool:
    return isinstance(value, str) and not _NO_HEADER.search(value)
