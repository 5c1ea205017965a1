"""Child processes that cannot outlive their parent, even when it is killed."""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # found here, not after the fork


def spawn(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdout: int | IO[bytes] | None = subprocess.PIPE,
    keep_fds: Sequence[int] = (),
    account: pwd.struct_passwd | None = None,
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own; SIGKILL reaches it when this process goes.

    The kernel ties that signal to the thread that forks, so call this from the main thread. A
    session of its own keeps Ctrl-C away from the child: its parent decides who stops when.
    `account` runs it as somebody else, which only root can. Only Linux has the kernel's help; elsewhere an orderly stop is what ends the child.
    """
    return subprocess.Popen(
        list(command),
        env=None if env is None else dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=tuple(keep_fds),
        user=None if account is None else account.pw_uid,
        group=None if account is None else account.pw_gid,
        extra_groups=None if account is None else [account.pw_gid],
        preexec_fn=die_with(os.getpid()),  # runs after the change of user, which would undo it
    )


def die_with(parent: int) -> Callable[[], None]:
    """What a child runs between fork and exec to be killed together with process `parent`."""

    def tie() -> None:
        if _LIBC is None:
            return
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it went before the kernel knew whom to watch
            os._exit(1)

    return tie


def stop(process: subprocess.Popen[bytes], *, grace_s: float) -> int:
    """SIGTERM, and after `grace_s` SIGKILL for the child's whole group. Returns its exit code."""
    process.terminate()
    try:
        return process.wait(grace_s)
    except subprocess.TimeoutExpired:
        kill_group(process)
        return process.wait()


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for a child of spawn() and whatever it started in its session's group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.poll()
