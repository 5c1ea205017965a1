"""How full the GPU of a worker's child is: written to the worker's row every few seconds."""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import Any

from django.db import DatabaseError, InterfaceError, connection

from jobs.models import Worker

EVERY_S = 10.0
log = logging.getLogger(__name__)


def watch(worker: str) -> None:
    """Tell the row of `worker` from now on, from a thread; nothing where no GPU was loaded."""
    torch = sys.modules.get("torch")  # never loaded for this: a `cpu` worker has no need of it
    if torch is not None and torch.cuda.is_initialized():
        thread = threading.Thread(target=_watch, args=(worker, torch), name="gpu", daemon=True)
        thread.start()


def _watch(worker: str, torch: Any) -> None:
    while True:
        try:
            free, total = torch.cuda.mem_get_info()
        except RuntimeError as error:  # the device is lost: the job that uses it says more
            log.warning("%s can not see its GPU's memory any more: %s", worker, error)
            return
        tell(worker, used=total - free, total=total)
        connection.close()
        time.sleep(EVERY_S)


def tell(worker: str, *, used: int, total: int) -> None:
    """Write it. A database that is away is told the next time."""
    try:
        Worker.objects.filter(name=worker).update(gpu_memory_used=used, gpu_memory_total=total)
    except (DatabaseError, InterfaceError) as error:
        log.warning("%s: the GPU's memory is not written: %s", worker, error)
