"""Worker rows: which processes can take a job now."""

from __future__ import annotations

import os
import socket

from django.db import transaction
from django.db.models.functions import Now

from jobs.models import Worker
from jobs.scheduling.wake import wake


def announce(name: str, queue: str, *, device: str = "", warm: bool = False) -> None:
    """Say that a worker process lives. It counts as capacity once it is warm."""
    Worker.objects.update_or_create(
        name=name,
        defaults={
            "queue": queue,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "device": device,
            "warm": warm,
            "seen_at": Now(),
        },
    )
    if warm:
        wake()


def seen(name: str, *, warm: bool | None = None) -> bool:
    """Renew the sign of life. False when the row is gone and must be announced again."""
    fields: dict[str, object] = {"seen_at": Now()}
    if warm is not None:
        fields["warm"] = warm
    with transaction.atomic():  # on SQLite a transaction gets its turn sooner
        return Worker.objects.filter(name=name).update(**fields) == 1


def leave(name: str) -> None:
    """Forget a worker that ends."""
    Worker.objects.filter(name=name).delete()
