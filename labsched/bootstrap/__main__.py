"""`python -m labsched.bootstrap [--dev]`: everything a start needs, reused when it is there."""

from __future__ import annotations

import argparse
import fcntl
import os
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from labsched.bootstrap import assets, frontend, packages
from labsched.bootstrap.console import Trouble, complain, say
from labsched.bootstrap.places import Places, make_folder


def main() -> int:
    """Set everything up. Returns the exit code; every failure has ended with a sentence."""
    parser = argparse.ArgumentParser(prog="bin/setup", description="Set labsched up, or check it.")
    parser.add_argument("--dev", action="store_true", help="also what tests and the gate need")
    options = parser.parse_args()
    places = Places.from_environment()
    try:
        with _one_at_a_time(places):
            set_up(places, dev=options.dev)
    except Trouble as trouble:
        complain(trouble)
        return 1
    except OSError as error:
        complain(
            Trouble(f"Set-up stopped: {error}.", "Solve that, then run the same command again.")
        )
        return 1
    except KeyboardInterrupt:
        complain(Trouble("Set-up was interrupted.", "Run the same command again to go on."))
        return 130
    return 0


def set_up(places: Places, *, dev: bool) -> None:
    """Packages, weights, slide, browser libraries, secret: whatever of it is missing."""
    started = time.monotonic()
    changed = [packages.install(places, dev=dev), assets.fetch(places), frontend.fetch(places)]
    assets.place_sample(cache=places.cache, slide_root=places.data / "slides")
    ensure_secret(places)
    if any(changed):
        say(f"Set-up is complete after {time.monotonic() - started:.0f} s")


def ensure_secret(places: Places) -> None:
    """Keep one random secret in the data folder, readable by its owner alone."""
    kept = make_folder(places.data) / "secret"
    if kept.is_file() and kept.stat().st_size:
        return
    partial = kept.with_name("secret.partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secrets.token_urlsafe(50) + "\n")
    os.replace(partial, kept)


@contextmanager
def _one_at_a_time(places: Places) -> Iterator[None]:
    """Two set-ups in one folder would write the same files: the second waits."""
    with (make_folder(places.repo / "var") / "setup.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another set-up is running in this folder; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
