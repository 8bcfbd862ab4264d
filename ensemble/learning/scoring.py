"""How good is an answer? Scorers to begin with, and a way to name your own.

A scorer is any function of a prompt's record (its line of the prompts file, as a dict) and the answer's
text, to a reward in [0, 1]. These compare with the record's ``answer`` and give 1.0 or 0.0; they raise
InputError where the record has none that they can use.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
import unicodedata
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

from ensemble.errors import ConfigError, InputError

Scorer = Callable[[Mapping[str, Any], str], float]

_EDGES = " \t\n\"'`*.,;:!?$\u201c\u201d\u2018\u2019"
_PLAIN = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3}\b)?"
_NUMBER = re.compile(rf"((?:(?<![\w.)])-)?{_PLAIN})(?:\s*/\s*({_PLAIN}))?")
_LONGEST_NUMBER = 200  # characters
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_STYLED = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{([^{}]*)\}")
# "A" and "I" are words too: after them a sentence may not go on.
_STATED = re.compile(
    r"(?i:\b(?:answer|(?:correct|right|best) (?:choice|option))(?:\s+is)?\b)[\s:=]*(?i:(?:option|choice)\s+)?"
    r"(?:\(([A-J])\)|([A-J])\b(?!')(?=[).:,;\]]|\s*$|\s+(?:because|since|as)\b)|([B-HJ])\b(?!'))",
    re.MULTILINE,
)
_MARKED = re.compile(r"^\s*([A-J])(?:[.):]|\s*$)|\(([A-J])\)", re.MULTILINE)


def exact_match(record: Mapping[str, Any], answer: str) -> float:
    """Whether the whole answer is ``record["answer"]`` (or one of them, in a list), but for case, spacing and
    the quotes, marks and full stop around it."""
    wanted = _wanted(record)
    accepted = wanted if isinstance(wanted, list) else [wanted]
    return float(_normal(answer) in [_normal(str(one)) for one in accepted])


def last_number(record: Mapping[str, Any], answer: str) -> float:
    """Whether the last number in the answer equals the last one in ``record["answer"]``, exactly: 0.5 is .50
    and 1/2, and 1,000 is 1e3, but 0.33 is not 1/3."""
    wanted = _last_number(str(_wanted(record)))
    if wanted is None:
        raise InputError(
            f"expected a number as the record's answer, found {record['answer']!r:.80}. Correct it."
        )
    return float(_last_number(answer) == wanted)


def choice_letter(record: Mapping[str, Any], answer: str) -> float:
    """Whether the choice that the answer ends on, A to J, is ``record["answer"]``: the last that is called
    the answer ("the answer is (C)"), else the last that opens a line ("C. Paris") or is in brackets."""
    wanted = str(_wanted(record)).strip().upper()
    if not re.fullmatch("[A-J]", wanted):
        raise InputError(
            f"expected a letter, A to J, as the record's answer, found {record['answer']!r:.80}."
        )
    return float(_last_choice(answer) == wanted)


def load_scorer(spec: str) -> Scorer:
    """The function that ``"module:function"`` or ``"path/to/file.py:function"`` names. It runs that code.

    Raises ConfigError: no such module, file or function, or it fails as it is imported.
    """
    place, colon, name = spec.rpartition(":")
    if not (colon and place and name):
        raise ConfigError(
            'expected a scorer such as "ensemble.learning.scoring:exact_match" or "score.py:grade", '
            f"found {spec!r}"
        )
    is_file = place.endswith(".py") or "/" in place
    if is_file and not Path(place).is_file():
        raise ConfigError(f"{spec}: expected a Python file at {place}, found none. Check the path.")
    try:
        module = _module_of(Path(place)) if is_file else importlib.import_module(place)
    except Exception as error:
        hint = (
            "Mend it." if is_file else f"Is it installed? For a file, write {place.split('.')[-1]}.py:{name}"
        )
        raise ConfigError(
            f"{spec}: {place} cannot be imported: {type(error).__name__}: {error}. {hint}"
        ) from error
    scorer = getattr(module, name, None)
    if not callable(scorer):
        there = ", ".join(word for word, value in vars(module).items() if callable(value) and word[0] != "_")
        raise ConfigError(
            f"{spec}: expected a function {name} in {place}, found {there or 'none'}. Name one of them."
        )
    return scorer  # type: ignore[no-any-return]


def _module_of(file: Path) -> ModuleType:
    name = f"scorer_{file.stem}_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and the like look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _wanted(record: Mapping[str, Any]) -> Any:
    wanted = record.get("answer")
    if wanted is None or wanted == "" or wanted == []:
        raise InputError(
            'expected the record to hold the right answer as "answer", found none. Add it to its line.'
        )
    return wanted


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_EDGES)


def _last_number(text: str) -> Fraction | None:
    text = _FRACTION.sub(r"\1/\2", text).replace("\u2212", "-").replace("{,}", ",")
    found = list(_NUMBER.finditer(text.replace("\\", "").replace("$", "")))
    if not found or len(found[-1][0]) > _LONGEST_NUMBER:
        return None
    above, below = (Fraction(Decimal((part or "1").replace(",", ""))) for part in found[-1].groups())
    return above / below if below else None


def _last_choice(text: str) -> str | None:
    text = (
        _BOXED.sub(r"(\1)", _STYLED.sub(r"\1", text)).translate({ord(mark): None for mark in "*_`$"}).strip()
    )
    if len(text) == 1:
        return text.upper()
    for pattern in (_STATED, _MARKED):
        if found := pattern.findall(text):
            return "".join(found[-1])
    return None
