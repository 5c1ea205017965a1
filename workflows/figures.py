"""The numbers of the system strip: how busy the place is, and how much of it is yours."""

from __future__ import annotations

from dataclasses import dataclass

from django.conf import settings
from django.db.models import Count, Q

from jobs.models import Job
from jobs.states import FIRST_ACTIVE
from tenants.identity import Identity
from tenants.pages import rows_of
from workflows import dashboard


@dataclass(frozen=True)
class Strip:
    """Totals of all for users and workers; jobs are those of the asking tenant alone."""

    active_users: int
    max_active_users: int
    workers: int
    workers_busy: int
    waiting: int
    active: int

    @property
    def hint(self) -> str:
        """What to do when nothing can run; empty when all is well."""
        return "" if self.workers else "No worker is ready yet. Start one with bin/serve."


def strip(who: Identity) -> Strip:
    """The strip as of now."""
    workers = dashboard.workers()
    mine = (
        rows_of(Job.objects, who)
        .live()
        .aggregate(
            waiting=Count("pk", filter=Q(state__lt=int(FIRST_ACTIVE))),
            active=Count("pk", filter=Q(state__gte=int(FIRST_ACTIVE))),
        )
    )
    return Strip(
        active_users=dashboard.active_users(),
        max_active_users=settings.MAX_ACTIVE_USERS,
        workers=workers["total"],
        workers_busy=workers["busy"],
        **mine,
    )
