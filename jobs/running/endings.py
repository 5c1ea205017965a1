"""How an attempt ended, as a reason and a sentence for people. Tracebacks go to the log alone."""

from __future__ import annotations

import errno
import re
import signal
from pathlib import Path

from jobs.imaging.contract import BadInput
from jobs.imaging.weights import MissingWeights
from jobs.slides.bucket import SlideAway
from jobs.states import Reason

OUT_OF_MEMORY_EXIT = 77  # a child that ends so says that memory ran out
OOM_COUNTERS = (
    (Path("/sys/fs/cgroup/memory.events"), "oom_kill"),
    (Path("/proc/vmstat"), "oom_kill"),
)
NO_MEMORY = (
    "The job ran out of memory. Give it a smaller tile_size, or run it where more memory is free, "
    "then retry it."
)
ABSOLUTE_PATH = re.compile(r"(?<![\w.])/(?:[^\s/'\":]+/)+([^\s/'\":]+)")
LONGEST = 300
OTHER_DEVICE = "OtherDevice"  # of jobs.imaging.plan, known by name, so that torch stays unloaded


def of_error(error: BaseException) -> tuple[Reason, str]:
    """Reason and sentence for what the body of a job raised."""
    if isinstance(error, BadInput):
        return Reason.BAD_INPUT, str(error)
    if isinstance(error, MissingWeights | SlideAway) or type(error).__name__ == OTHER_DEVICE:
        return Reason.ERROR, str(error)
    if is_out_of_memory(error):
        return Reason.OUT_OF_MEMORY, NO_MEMORY
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Reason.ERROR, (
            "No space is left on the disk that holds the results. Free some, then retry the job."
        )
    return Reason.ERROR, (
        f"The job stopped on an error ({_line(error)}). The worker's log has the details; retry "
        "the job, and report the error if it comes back."
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch's own error is known by name, so that torch stays unloaded."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return not names.isdisjoint({"MemoryError", "OutOfMemoryError"})


def _line(error: BaseException) -> str:
    """The error in one line, without the folders of this machine."""
    first = next(iter(str(error).splitlines()), "")
    text = ABSOLUTE_PATH.sub(r"\1", first).strip().rstrip(".")
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def of_exit(exit_code: int, *, oom_kills: int) -> tuple[Reason, str]:
    """Reason and sentence for a child that died in the middle of a job.

    exit_code  as multiprocessing gives it: negative is a signal
    oom_kills  how many processes the kernel ended for memory meanwhile
    """
    if exit_code == OUT_OF_MEMORY_EXIT:
        return Reason.OUT_OF_MEMORY, NO_MEMORY
    if exit_code == -signal.SIGKILL and oom_kills > 0:
        return Reason.OUT_OF_MEMORY, f"The system ended the worker process for memory. {NO_MEMORY}"
    if exit_code < 0:
        how = f"with signal {-exit_code} ({_signal_name(-exit_code)})"
    else:
        how = f"by itself with exit code {exit_code}"
    return Reason.ERROR, (
        f"The worker process ended {how} while the job ran. Retry the job; if this comes back, "
        "the worker's log and the system's log tell more."
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def kernel_oom_kills() -> int:
    """How many processes the kernel ended for memory so far: this container, else the machine."""
    for path, key in OOM_COUNTERS:
        try:
            text = path.read_text()
        except OSError:
            continue
        for line in text.splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    return 0
