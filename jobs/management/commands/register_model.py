"""`manage.py register_model PATH --name NAME`: let jobs name an InstanSeg model of yours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from jobs import networks


class Command(BaseCommand):
    """Looks at a model file, keeps a copy of it, and lets jobs name it."""

    help = 'Let jobs say {"model": NAME}: a TorchScript file that InstanSeg exported.'

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("path", type=Path, help="instanseg.pt; an rdf.yaml beside it is kept.")
        parser.add_argument("--name", required=True, help="Such as our_nuclei.")
        parser.add_argument(
            "--release", default="1", help="Its version: jobs say NAME:VERSION, or take the last."
        )

    def handle(self, *args: Any, path: Path, name: str, release: str, **options: Any) -> None:
        try:
            made = networks.register(name, release, path)
        except networks.Refused as refused:
            raise CommandError(str(refused)) from refused
        self.stdout.write(
            f"{made}: {' and '.join(made.outputs)} at {made.pixel_size:g} µm per pixel. {made.parity}"
        )
