"""An error travels: it is copied, and comes back whole from another process."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest

from ensemble.errors import (
    CallFailedError,
    EnsembleError,
    MissingExtraError,
    NoEligibleMemberError,
    StreamBrokenError,
)

FAILURES = {"oak": "Timeout: too slow", "elm": "APIError: no"}
SAID = {
    MissingExtraError: (("onnxruntime", "cpu", "This router"), "This router needs.*onnxruntime.*router.cpu"),
    NoEligibleMemberError: ((FAILURES,), "none of the 2 members.*oak: Timeout"),
    CallFailedError: ((FAILURES, "d1", "Ask again."), r"2 member.*decision d1.*APIError: no\sAsk again\.$"),
    StreamBrokenError: ((FAILURES, "d1"), "2 member.*decision d1.*elm: APIError: no$"),
}


def kinds(base: type[EnsembleError]) -> Iterator[type[EnsembleError]]:
    yield base
    for kind in base.__subclasses__():
        if kind.__module__ == base.__module__:
            yield from kinds(kind)


@pytest.mark.parametrize("kind", [*kinds(EnsembleError)])
def test_an_error_read_back_is_the_same(kind: type[EnsembleError]) -> None:
    arguments, says = SAID.get(kind, (("expected this, found that",), "expected this, found that"))
    error = kind(*arguments)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind and (str(again), vars(again)) == (str(error), vars(error))
    with pytest.raises(kind, match=f"(?s){says}"):
        raise error


def test_what_a_failure_holds_is_as_it_was_then() -> None:
    failures = dict(FAILURES)
    error = CallFailedError(failures, "d1")
    failures.clear()
    assert error.failures == FAILURES and "oak" in str(error)
