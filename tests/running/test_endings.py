"""How an attempt ended, in words for people."""

from __future__ import annotations

import errno
import signal
from pathlib import Path

import pytest

from jobs.imaging.contract import BadInput
from jobs.imaging.weights import MissingWeights
from jobs.running import endings
from jobs.states import Reason


@pytest.mark.parametrize(
    ("error", "reason", "says"),
    [
        (BadInput("No slide. Give one."), Reason.BAD_INPUT, "No slide. Give one."),
        (MissingWeights("No weights. Get some."), Reason.ERROR, "No weights. Get some."),
        (MemoryError(), Reason.OUT_OF_MEMORY, "memory"),
        (OSError(errno.ENOSPC, "No space left on device"), Reason.ERROR, "No space is left"),
        (ValueError("bad\nsecond line"), Reason.ERROR, "ValueError: bad"),
        (KeyError(), Reason.ERROR, "KeyError"),
    ],
)
def test_each_kind_of_error_has_its_reason_and_sentence(
    error: Exception, reason: Reason, says: str
) -> None:
    found, sentence = endings.of_error(error)
    assert found is reason
    assert says in sentence
    assert "\n" not in sentence


def test_torchs_own_error_counts_as_memory_without_torch() -> None:
    class OutOfMemoryError(RuntimeError):
        """Named like torch's."""

    reason, _ = endings.of_error(OutOfMemoryError("CUDA out of memory"))
    assert reason is Reason.OUT_OF_MEMORY


def test_folders_of_the_machine_are_not_told() -> None:
    _, sentence = endings.of_error(RuntimeError("can't open '/srv/lab/slides/a.svs' for reading"))
    assert "/srv" not in sentence
    assert "a.svs" in sentence


def test_a_long_message_is_cut() -> None:
    _, sentence = endings.of_error(RuntimeError("x" * 10_000))
    assert len(sentence) < 600


@pytest.mark.parametrize(
    ("exit_code", "oom_kills", "reason", "says"),
    [
        (-signal.SIGKILL, 0, Reason.ERROR, "signal 9 (SIGKILL)"),
        (-signal.SIGKILL, 1, Reason.OUT_OF_MEMORY, "for memory"),
        (-signal.SIGSEGV, 1, Reason.ERROR, "signal 11 (SIGSEGV)"),
        (3, 0, Reason.ERROR, "exit code 3"),
        (endings.OUT_OF_MEMORY_EXIT, 0, Reason.OUT_OF_MEMORY, "memory"),
    ],
)
def test_each_death_of_a_child_has_its_reason_and_sentence(
    exit_code: int, oom_kills: int, reason: Reason, says: str
) -> None:
    found, sentence = endings.of_exit(exit_code, oom_kills=oom_kills)
    assert found is reason
    assert says in sentence


def test_the_kernels_count_is_read_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = tmp_path / "memory.events"
    counters.write_text("low 0\noom 2\noom_kill 7\n")
    monkeypatch.setattr(
        endings, "OOM_COUNTERS", ((tmp_path / "absent", "oom_kill"), (counters, "oom_kill"))
    )
    assert endings.kernel_oom_kills() == 7
