"""What the bucket answered a moment ago, and who is asking just now: of equal questions, one is asked."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

FRESH_S = 10.0
"""For how long an answer is taken as still true: a viewer asks for a hundred tiles a second."""
KEPT = 10_000

Kept = TypeVar("Kept")

_answers: OrderedDict[object, tuple[float, Any]] = OrderedDict()
_asked: dict[object, Future[Any]] = {}
_lock = threading.Lock()


def fresh(question: object, ask: Callable[[], Kept]) -> Kept:
    """The answer to `question`, asked again when it is older than FRESH_S. Raises what `ask` does."""
    with _lock:
        if (found := _known(question)) is not None:
            answer: Kept = found
            return answer
        theirs = _asked.get(question)
        ours = _asked.setdefault(question, Future())
    return _answer(question, ask, ours) if theirs is None else ours.result()


def _answer(question: object, ask: Callable[[], Kept], told: Future[Any]) -> Kept:
    """Ask, and tell the threads that wait for the same."""
    try:
        answer = ask()
    except BaseException as error:
        with _lock:
            _asked.pop(question, None)
        told.set_exception(error)
        raise
    with _lock:
        if _asked.pop(question, None) is told:  # else all was forgotten meanwhile
            _keep(question, answer)
    told.set_result(answer)
    return answer


def _keep(question: object, answer: object) -> None:
    _answers[question] = time.monotonic(), answer
    _answers.move_to_end(question)
    while len(_answers) > KEPT:
        _answers.popitem(last=False)


def known(question: object) -> Any:
    """The answer, if it is fresh; else None."""
    with _lock:
        return _known(question)


def _known(question: object) -> Any:
    at, answer = _answers.get(question, (0.0, None))
    if answer is None or time.monotonic() - at >= FRESH_S:
        return None
    _answers.move_to_end(question)
    return answer


def forget() -> None:
    """Drop all of them; what is being asked is told to those who wait, and not kept."""
    with _lock:
        _answers.clear()
        _asked.clear()
