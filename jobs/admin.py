"""Jobs, lanes, slots, workers and results for operators: read-only, steered by actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest

from jobs import admin_networks, retrying, services  # noqa: F401 - registers its pages
from jobs.models import (
    Artifact,
    Blob,
    Block,
    Branch,
    Duration,
    Edge,
    Event,
    Job,
    JobProgress,
    LearntUntil,
    Lease,
    Maintenance,
    Queue,
    RunSlot,
    Slide,
    Tally,
    UserSlot,
    Worker,
)
from jobs.scheduling import slots
from jobs.scheduling.lanes import set_paused as set_lane_paused
from jobs.scheduling.wake import wake
from tenants.readonly import ReadOnlyAdmin


class Steered(ReadOnlyAdmin):
    """Runs a service for each chosen row, notes it in the log, and shows what was refused."""

    def each(
        self, request: HttpRequest, rows: Any, call: Callable[[Any], object], done: str
    ) -> None:
        for row in rows:
            try:
                call(row)
            except services.StaleTransition as error:
                messages.warning(request, str(error))
            else:
                self.log_change(request, row, done)
                messages.success(request, f"{row}: {done}.")
        wake()


@admin.register(Job)
class JobAdmin(Steered):
    """Every job and where it stands."""

    list_display = ["key", "tenant", "workflow", "branch", "job_type", "state", "reason", "attempt"]
    list_select_related = ["tenant", "workflow", "branch"]
    list_filter = ["state", "reason", "job_type", "queue"]
    search_fields = ["key", "uuid", "tenant__key"]
    ordering = ["-id"]
    actions = ["cancel", "retry"]

    @admin.action(description="Cancel")
    def cancel(self, request: HttpRequest, rows: Any) -> None:
        self.each(request, rows, services.cancel, "cancelled")

    @admin.action(description="Retry")
    def retry(self, request: HttpRequest, rows: Any) -> None:
        self.each(request, rows, retrying.retry, "retried")


class Pausable(Steered):
    """Rows with a switch that stops them from starting new jobs."""

    actions = ["pause", "resume"]

    def switch(self, row: Any, paused: bool) -> None:
        row.paused = paused
        row.save(update_fields=["paused"])

    @admin.action(description="Pause: start no new job")
    def pause(self, request: HttpRequest, rows: Any) -> None:
        self.each(request, rows, lambda row: self.switch(row, True), "paused")

    @admin.action(description="Resume")
    def resume(self, request: HttpRequest, rows: Any) -> None:
        self.each(request, rows, lambda row: self.switch(row, False), "resumed")


@admin.register(Branch)
class BranchAdmin(Pausable):
    """Lanes."""

    list_display = ["name", "tenant", "paused"]
    list_select_related = ["tenant"]
    list_filter = ["paused"]
    search_fields = ["name", "tenant__key"]

    def switch(self, row: Branch, paused: bool) -> None:
        set_lane_paused(row, paused)


@admin.register(Queue)
class QueueAdmin(Pausable):
    """Queues; their capacity is the one number that is set by hand."""

    list_display = ["name", "capacity", "paused"]
    fields = ["name", "capacity", "paused"]
    readonly_fields = ["name", "paused"]
    actions = ["pause", "resume", "begin_maintenance", "end_maintenance"]

    @admin.action(description="Begin maintenance: promote nothing, on any queue")
    def begin_maintenance(self, request: HttpRequest, rows: Any) -> None:
        slots.set_maintenance(True)
        messages.warning(request, "Maintenance: what runs goes on, nothing new starts.")

    @admin.action(description="End maintenance")
    def end_maintenance(self, request: HttpRequest, rows: Any) -> None:
        slots.set_maintenance(False)
        wake()
        messages.success(request, "Maintenance is over.")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(request.user.is_active and request.user.is_staff)


@admin.register(Worker)
class WorkerAdmin(Steered):
    """Worker processes; draining is how one is taken out of service."""

    list_display = ["name", "queue", "host", "pid", "device", "warm", "draining", "seen_at"]
    list_filter = ["queue", "warm", "draining"]
    actions = ["drain", "undrain"]

    @admin.action(description="Drain: take no new job")
    def drain(self, request: HttpRequest, rows: Any) -> None:
        self.each(request, rows, lambda row: self._set(row, True), "draining")

    @admin.action(description="Take jobs again")
    def undrain(self, request: HttpRequest, rows: Any) -> None:
        self.each(request, rows, lambda row: self._set(row, False), "takes jobs again")

    def _set(self, row: Worker, draining: bool) -> None:
        Worker.objects.filter(pk=row.pk).update(draining=draining)


@admin.register(Lease)
class LeaseAdmin(ReadOnlyAdmin):
    """Who holds what until when."""

    list_display = [
        "job",
        "shard",
        "tenant",
        "queue",
        "run_slot",
        "worker",
        "attempt",
        "expires_at",
    ]
    list_select_related = ["job", "tenant", "run_slot"]


@admin.register(UserSlot)
class UserSlotAdmin(ReadOnlyAdmin):
    """The active users."""

    list_display = ["number", "holder", "acquired_at"]
    list_select_related = ["holder"]


@admin.register(Slide)
class SlideAdmin(ReadOnlyAdmin):
    """Slides that were used."""

    list_display = ["path", "tenant", "root", "vendor", "width_l0", "height_l0", "mpp_x", "error"]
    list_select_related = ["tenant"]
    search_fields = ["path", "tenant__key"]


@admin.register(Artifact)
class ArtifactAdmin(ReadOnlyAdmin):
    """Stored results."""

    list_display = ["name", "tenant", "job", "kind", "size", "created_at"]
    list_select_related = ["tenant", "job"]
    list_filter = ["kind"]
    search_fields = ["name", "tenant__key"]
    ordering = ["-id"]


@admin.register(Event)
class EventAdmin(ReadOnlyAdmin):
    """What happened, as the live feed told it."""

    list_display = ["seq", "tenant", "kind", "workflow", "at"]
    list_select_related = ["tenant", "workflow"]
    list_filter = ["kind"]
    ordering = ["-id"]


@admin.register(Edge)
class EdgeAdmin(ReadOnlyAdmin):
    """Who waits for whom."""

    list_display = ["upstream", "downstream", "tenant"]
    list_select_related = ["upstream", "downstream", "tenant"]


@admin.register(JobProgress)
class JobProgressAdmin(ReadOnlyAdmin):
    """How far running jobs are."""

    list_display = ["job", "phase", "progress", "tiles_done", "tiles_total", "updated_at"]
    list_select_related = ["job"]


@admin.register(Blob)
class BlobAdmin(ReadOnlyAdmin):
    """Stored bytes, counted once however many artifacts share them."""

    list_display = ["sha256", "tenant", "size", "created_at", "loose_at", "doomed_at"]
    list_select_related = ["tenant"]
    search_fields = ["sha256", "tenant__key"]


@admin.register(Duration)
class DurationAdmin(ReadOnlyAdmin):
    """What was learnt about how long jobs take."""

    list_display = ["job_type", "model", "device", "phase", "per_tile"]


admin.site.register([Block, RunSlot, Maintenance, LearntUntil, Tally], ReadOnlyAdmin)
