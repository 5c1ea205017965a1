"""`manage.py dev`: the whole stack on this machine, as bin/serve runs it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from contextlib import ExitStack

from django.conf import settings
from django.core.management import BaseCommand, call_command
from django.db import OperationalError, connections

from labsched import loopback, stack
from labsched.bootstrap.assets import place_sample
from labsched.bootstrap.console import Trouble, complain, say
from labsched.bootstrap.places import make_folder, require_space
from labsched.embedded_redis import EmbeddedRedis, RedisUnavailable, answers, port_is_free
from labsched.supervisor import Service, Supervisor
from tenants import signin

DEFAULT_PORT = 8000
DATA_GB = 0.5
PATIENCE_S = 90.0  # a start on a slow machine; then say what is missing, and go on


class Command(BaseCommand):
    help = "Run web, scheduler and workers as child processes until Ctrl-C."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--port", type=int, help=f"the web port on {stack.HOST}")
        parser.add_argument(
            "--operator",
            action="store_true",
            help="make an operator account, print its sign-in link",
        )

    def handle(self, *, port: int | None, operator: bool, **options: object) -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the supervisor takes over
        try:
            run(choose_port(port), operator=operator)
        except Trouble as trouble:
            complain(trouble)
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(130)


def choose_port(wanted: int | None) -> int:
    """The wanted port, or a sentence that names a free one."""
    port = DEFAULT_PORT if wanted is None else wanted
    if not 1 <= port <= 65_535:
        raise Trouble(f"{port} is not a port.", "Give a number from 1024 to 65535: --port 8001.")
    if not port_is_free(port, stack.HOST):
        free = next((p for p in range(port + 1, 65_536) if port_is_free(p, stack.HOST)), 8001)
        raise Trouble(
            f"Port {port} is taken by another program, or needs more rights than you have.",
            f"Stop that program or choose another port: --port {free}",
        )
    return port


def run(port: int, *, operator: bool) -> None:
    """Prepare the data folder and serve until told to stop."""
    require_space(make_folder(settings.LABSCHED_DATA), gigabytes=DATA_GB, purpose="the results")
    place_sample(cache=settings.LABSCHED_CACHE, slide_root=settings.SLIDE_ROOT)
    with ExitStack() as cleanup:
        supervisor = Supervisor(cwd=settings.BASE_DIR)
        cleanup.callback(supervisor.stop)
        redis_url = start_redis(supervisor, cleanup)
        say("Preparing the database and the static files")
        prepare_database()
        collect_static()
        say("Starting web, scheduler and workers; the first worker for cells takes a while to load")
        announce = Announcement(port, link=sign_in_link if operator else None)
        supervisor.each_tick = announce
        for service in stack.services(
            port=port,
            cpu_workers=settings.CPU_WORKERS,
            gpu_workers=settings.GPU_WORKERS,
            extra={"REDIS_URL": redis_url},
        ):
            supervisor.add(service)
        supervisor.run()


def start_redis(supervisor: Supervisor, cleanup: ExitStack) -> str:
    """The URL of the Redis to use: the one named by REDIS_URL, else our own child."""
    if not settings.REDIS_EMBEDDED:
        if not answers(settings.REDIS_URL):
            raise Trouble(
                "The Redis named by REDIS_URL does not answer.",
                "Start it, or unset REDIS_URL to use the embedded one.",
            )
        return str(settings.REDIS_URL)
    try:
        server = EmbeddedRedis.claim(settings.LABSCHED_DATA / "redis")
        cleanup.callback(server.release)
        cleanup.callback(supervisor.stop)  # before the folder is given back
        fds = [server.lock_fd]
        process = supervisor.add(
            Service("redis", server.command, os.environ, last=True, keep_fds=fds)
        )
        server.wait_until_ready(process)
    except RedisUnavailable as error:
        wrong, _, next_step = str(error).partition(". ")
        raise Trouble(f"{wrong}.", next_step) from error
    return server.url


def prepare_database() -> None:
    """Bring the tables up to date, or say that the database cannot be reached."""
    try:
        call_command("migrate", interactive=False, verbosity=0)
    except OperationalError as error:
        reason = str(error).strip().splitlines()[0]
        raise Trouble(
            f"The database could not be used: {reason}",
            "Check that it runs and that DATABASE_URL names it; unset, SQLite in the data folder is used.",
        ) from error


def collect_static() -> None:
    """Gather the files that WhiteNoise serves; with DEBUG on Django finds them by itself."""
    if not settings.DEBUG:
        call_command("collectstatic", interactive=False, verbosity=0)


def sign_in_link() -> str:
    """A path that signs the operator in once; the account is made when it is not there."""
    path = signin.link(signin.ensure_operator())
    connections.close_all()
    return path


class Announcement:
    """Called each tick: asks /health, and says once where the stack is, or what is missing."""

    def __init__(self, port: int, *, link: Callable[[], str] | None) -> None:
        self.url = f"http://{stack.HOST}:{port}"
        self.link = link
        self._said = False
        self._asked_at = self._started = time.monotonic()
        self._complained = False

    def __call__(self) -> None:
        now = time.monotonic()
        if self._said or now - self._asked_at < 1:
            return
        self._asked_at = now
        missing = unhealthy(self.url)
        if missing is None:
            self._said = True
            self._welcome()
        elif now - self._started > PATIENCE_S and not self._complained:
            self._complained = True
            say(f"Not ready after {PATIENCE_S:.0f} s: {missing}. The lines above say why.")

    def _welcome(self) -> None:
        say(f"\nlabsched is ready: {self.url}/")
        if self.link is not None:
            say(f"Sign in as the operator (works once): {self.url}{self.link()}")
        say("Ctrl-C stops everything.\n")


def unhealthy(url: str) -> str | None:
    """None when /health is 200, else what it says is missing."""
    try:
        answer = loopback.request("GET", f"{url}/health", timeout_s=2)
    except OSError:
        return "the web process does not answer yet"
    return None if answer.status == 200 else _failed_parts(answer.body)


def _failed_parts(body: bytes) -> str:
    try:
        told = json.loads(body)
    except ValueError:
        return "/health does not answer with JSON"
    parts = told.get("checks", told) if isinstance(told, dict) else {}
    failed = [name for name, part in parts.items() if not is_ok(part)]
    return f"/health misses {', '.join(failed) or 'something'}"


def is_ok(part: object) -> bool:
    """Whether one part of /health's answer, a word or an object with a status, is well."""
    return (part.get("status") if isinstance(part, dict) else part) in ("ok", True)
