"""OpenAI messages, and the text in them that is encoded: what the user asks, not the harness around it.

What becomes of each part of a conversation, in `prompt_text`:

==========================  ====================================================================
the last user message       is the request; one with no text of its own (only tool results, only
                            a harness's notes) is passed over for the one before it
earlier user messages       are put before a request shorter than SHORT characters ("yes, go on"),
                            the nearest first, until the text is no longer short
harness blocks              ``<system-reminder>...</system-reminder>`` and its like are cut out of
                            user text, unless that leaves nothing in the whole conversation
images, audio, files        a mark in their place, such as ``[image]``
system, developer           left out; read only if no user message has any text
assistant, tool, function   left out; read only if nobody else has any text
==========================  ====================================================================

The text is then in canonical form: Unicode NFC, line ends ``\\n``, at most one blank line in a row,
no white space around it, no control characters but tab and newline, and U+FFFD for a surrogate
without its partner. Canonical text is a fixed point: ``prompt_text(prompt_text(m)) == prompt_text(m)``.
All of it takes time linear in the length of the text.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .errors import InputError

Messages = str | Sequence[Mapping[str, Any]]
SHORT = 40  # characters: below this a request seldom says what the task is
OTHER_PART_CHARACTERS = 3_000  # an image, audio or file, in characters of text that cost about as much
ROLES = ("system", "developer", "user", "assistant", "tool", "function")

# Blocks that coding assistants and editors write into the user's message. Those in which they wrap
# the user's own words (<task>, <user_query>, <userRequest>) are not among them.
_HARNESS_TAG = re.compile(
    r"<(/?)(system-reminder|command-name|command-message|local-command-stdout|local-command-stderr"
    r"|local-command-caveat|ide_selection|ide_opened_file|task-notification|user-prompt-submit-hook"
    r"|environment_context|environment_details|environment_info|workspace_info|user_instructions"
    r"|additional_data|open_and_recently_viewed_files|project_layout|editorContext"
    r"|reminderInstructions|session_context)>"
)
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_ALONE = re.compile(r"[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]")
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]+")
_LINE_ENDS = re.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_BLANK_LINES = re.compile(r"\n\s*\n")
# A letter never carries so many marks; unicodedata.normalize is quadratic in the length of such a run.
_MOST_MARKS = 30
_MAYBE_MARKS = re.compile(rf"[^\w\s\x00-\x7f]{{{_MOST_MARKS + 1},}}")

_TEXT_PARTS = ("text", "input_text", "output_text")
_PLACEHOLDERS = {
    "image_url": "[image]",
    "image": "[image]",
    "input_image": "[image]",
    "input_audio": "[audio]",
    "audio": "[audio]",
    "video_url": "[video]",
    "file": "[file]",
    "input_file": "[file]",
    "document": "[file]",
}
_CALLS = ("tool_calls", "function_call")
# Parts that an agent's loop writes: nobody asks with them.
_LOOP_PARTS = ("tool_use", "tool_result", "thinking", "redacted_thinking")
_EXAMPLE = 'Pass a string, or a list such as [{"role": "user", "content": "..."}].'


def prompt_text(messages: Messages) -> str:
    """The canonical text of what the user asks, by the table above; never empty. Raises InputError."""
    text = _canonical(messages if isinstance(messages, str) else _request(as_messages(messages)))
    if not text:
        raise InputError(f"expected a prompt with some text in it, found none. {_EXAMPLE}")
    return text


def as_messages(prompt: Messages) -> list[dict[str, Any]]:
    """The messages to send: checked, each a new dict, otherwise as given. Raises InputError.

    A string becomes one user message; message objects (such as litellm's own, from an earlier
    reply) become dicts. A surrogate without its partner, which can be sent to nobody, becomes U+FFFD.
    """
    if isinstance(prompt, str):
        return [{"role": "user", "content": _sendable(prompt)}]
    if isinstance(prompt, Mapping | bytes | bytearray) or not isinstance(prompt, Sequence):
        raise InputError(f"expected a prompt or a list of messages, found {_named(prompt)}. {_EXAMPLE}")
    if not prompt:
        raise InputError(f"expected at least one message, found an empty list. {_EXAMPLE}")
    try:
        return [_as_message(message, f"message {number}") for number, message in enumerate(prompt, start=1)]
    except RecursionError:
        raise InputError(
            "expected messages of plain values, found one nested too deeply, or inside itself. Flatten it."
        ) from None


def count_characters(
    messages: Messages, params: Mapping[str, Any] | None = None, *, length: Callable[[str], int] = len
) -> int:
    """Characters billed as input: all turns, tool calls and results; from ``params``, what tools are offered.

    ``length`` is what a text counts. An image, a sound or a file counts OTHER_PART_CHARACTERS, whatever its
    size. Raises InputError.
    """
    count = 0
    for message in as_messages(messages):
        for part in _parts(message):
            text = _own_text(part)
            if text is not None:
                count += length(text)
            elif part["type"] in _PLACEHOLDERS:
                count += OTHER_PART_CHARACTERS
            else:
                count += _json_length(part, length)
        count += sum(_json_length(message[key], length) for key in _CALLS if message.get(key))
    offered = ("tools", "functions", "response_format")
    return count + sum(_json_length(params[key], length) for key in offered if params and params.get(key))


def needs(messages: Messages, params: Mapping[str, Any] | None = None) -> frozenset[str]:
    """The abilities, of records.ABILITIES, that this request asks of a member. Raises InputError.

    ``params`` are the call's own: tools or functions, response_format, reasoning_effort, thinking.
    """
    params = params or {}
    required = set()
    for message in as_messages(messages):
        if message["role"] in ("tool", "function") or any(message.get(key) for key in _CALLS):
            required.add("tools")
        if any(_PLACEHOLDERS.get(part["type"]) == "[image]" for part in _parts(message)):
            required.add("vision")
    if params.get("tools") or params.get("functions"):
        required.add("tools")
    shape = params.get("response_format")  # litellm takes a pydantic class too
    if isinstance(shape, type) or (isinstance(shape, Mapping) and shape.get("type") == "json_schema"):
        required.add("json_schema")
    thinking = params.get("thinking")
    thinks = isinstance(thinking, Mapping) and thinking.get("type") not in (None, "disabled")
    if thinks or params.get("reasoning_effort") not in (None, "none", "disable"):
        required.add("reasoning")
    return frozenset(required)


def _as_message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping) and callable(dump := getattr(message, "model_dump", None)):
        message = dump(exclude_none=True)
    if not isinstance(message, Mapping):
        raise InputError(f"{where}: expected a dict with a role, found {_named(message)}. {_EXAMPLE}")
    role = message.get("role")
    if role not in ROLES:
        found = repr(role[:80]) if isinstance(role, str) else _named(role)
        raise InputError(f"{where}: expected a role of {', '.join(ROLES)}, found {found}. Name one.")
    content = message.get("content")
    if isinstance(content, list | tuple):
        for number, part in enumerate(content, start=1):
            _check_part(part, f"{where} ({role}), part {number}")
    elif not isinstance(content, str) and not (content is None and role in ("assistant", "function")):
        raise InputError(
            f"{where} ({role}): expected content, a string or a list of parts, found {_named(content)}. "
            "Decode bytes, and turn other values into text first."
        )
    return {_name(key): _sendable(value) for key, value in message.items()}


def _check_part(part: Any, where: str) -> None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str):
        raise InputError(
            f'{where}: expected a dict such as {{"type": "text", "text": ...}}, found {_named(part)}'
        )
    if kind in _TEXT_PARTS and not isinstance(part.get("text"), str):
        raise InputError(f"{where}: expected text in a string, found {_named(part.get('text'))}. Decode it.")


def _sendable(value: Any) -> Any:
    """The same value with every string in it encodable: surrogates paired, or replaced by U+FFFD."""
    if isinstance(value, str):
        if value.isascii() or not _SURROGATE.search(value):
            return value
        return _ALONE.sub("\ufffd", value).encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    if isinstance(value, list | tuple):
        return [_sendable(inner) for inner in value]
    if isinstance(value, Mapping):
        return {_name(key): _sendable(inner) for key, inner in value.items()}
    return value


def _name(key: Any) -> Any:
    return _sendable(key) if isinstance(key, str) else key


def _request(messages: Sequence[Mapping[str, Any]]) -> str:
    """What is asked; empty if there is no text anywhere."""
    chosen: list[str] = []
    for message in reversed(messages):
        if message["role"] == "user" and (text := _without_harness(_text(message))):
            chosen.append(text)
            if sum(map(len, chosen)) >= SHORT:
                break
    if chosen:
        return "\n\n".join(reversed(chosen))
    for roles in (("user",), ("system", "developer"), ROLES):
        said = "\n\n".join(_text(message) for message in messages if message["role"] in roles)
        if said.strip():
            return said
    return ""


def _text(message: Mapping[str, Any]) -> str:
    """A message's text in plain form, with a mark in the place of each part that is not text."""
    pieces = []
    for part in _parts(message):
        text = _own_text(part)
        if text is not None:
            pieces.append(text)
        elif part["type"] not in _LOOP_PARTS:
            pieces.append(_PLACEHOLDERS.get(part["type"], f"[{part['type']}]"))
    return _plain("\n".join(pieces))


def _parts(message: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    content = message.get("content")
    return [{"type": "text", "text": content}] if isinstance(content, str) else content or ()


def _own_text(part: Mapping[str, Any]) -> str | None:
    return part["text"] if part["type"] in _TEXT_PARTS else None


def _canonical(text: str) -> str:
    plain = _plain(text)
    return _without_harness(plain) or _squeeze(plain)


def _plain(text: str) -> str:
    """Every character in its canonical form; blank lines and harness are still there."""
    text = _LINE_ENDS.sub("\n", _CONTROLS.sub("", _sendable(text)))
    if text.isascii():
        return text
    # Twice, as composing may leave more marks than there were: some stand for two.
    return _thin_marks(unicodedata.normalize("NFC", _thin_marks(text)))


def _thin_marks(text: str) -> str:
    def thin(run: re.Match[str]) -> str:
        kept, marks = [], 0
        for character in run[0]:
            marks = marks + 1 if unicodedata.category(character)[0] == "M" else 0
            if marks <= _MOST_MARKS:
                kept.append(character)
        return "".join(kept)

    return _MAYBE_MARKS.sub(thin, text)


def _squeeze(text: str) -> str:
    return _BLANK_LINES.sub("\n\n", text.strip())


def _without_harness(text: str) -> str:
    """Squeezed text less every harness block. A tag without its partner is plain text.

    A line end takes each block's place, so that no new tag can arise where two ends meet.
    """
    if "</" not in text:
        return _squeeze(text)
    opened: dict[str, list[int]] = {}
    blocks = []
    for tag in _HARNESS_TAG.finditer(text):
        starts = opened.setdefault(tag[2], [])
        if not tag[1]:
            starts.append(tag.start())
        elif starts:
            blocks.append((starts.pop(), tag.end()))
    pieces, end = [], 0
    for start, stop in sorted(blocks):
        pieces.append(text[end:start])  # empty where this block begins inside the one before
        end = max(end, stop)
    pieces.append(text[end:])
    return _squeeze("\n".join(pieces))


def _json_length(value: Any, length: Callable[[str], int]) -> int:
    try:
        return length(json.dumps(value, default=str, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            "expected calls, tools and other parts that are not text to be what JSON can hold, "
            f"found what cannot: {error}. Send plain values."
        ) from error


def _named(value: object) -> str:
    return "nothing" if value is None else f"a value of type {type(value).__name__}"
