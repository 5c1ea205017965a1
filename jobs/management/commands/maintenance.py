"""`manage.py maintenance on|off`: while it is on, what runs goes on and nothing new is promoted."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from jobs.scheduling import slots
from jobs.scheduling.wake import wake


class Command(BaseCommand):
    """Begins or ends maintenance mode."""

    help = "Begin or end maintenance: while it is on, what runs goes on and nothing new starts."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("state", choices=["on", "off"])
        parser.add_argument("--note", default="", help="A sentence for people whose jobs wait.")

    def handle(self, *args: Any, state: str, note: str, **options: Any) -> None:
        slots.set_maintenance(state == "on", note[:200])
        if state == "off":
            wake()
        self.stdout.write(
            "Maintenance: nothing new starts until `manage.py maintenance off`."
            if state == "on"
            else "Maintenance is over."
        )
