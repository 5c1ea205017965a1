"""Job, its branch, its edges and its progress: fields, constraints, querysets."""

from __future__ import annotations

import uuid
from typing import ClassVar, Self

from django.conf import settings
from django.db import models
from django.db.models import F, Q

from jobs.states import (
    FIRST_ACTIVE,
    FIRST_HEAD,
    FIRST_TERMINAL,
    LAST_ACTIVE,
    LAST_HEAD,
    JobState,
)
from tenants.models import Tenant
from tenants.scoping import TenantQuerySet

HEAD = Q(state__gte=int(FIRST_HEAD), state__lte=int(LAST_HEAD))
ACTIVE = Q(state__gte=int(FIRST_ACTIVE), state__lte=int(LAST_ACTIVE))
INACTIVE = Q(state__lt=int(FIRST_ACTIVE)) | Q(state__gt=int(LAST_ACTIVE))


class Branch(models.Model):
    """A lane of a tenant: its jobs run one at a time, in sequence order (R1)."""

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="+")
    name = models.CharField(max_length=100)
    paused = models.BooleanField(default=False)
    objects = TenantQuerySet.as_manager()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["tenant", "name"], name="branch_name_once")
        ]

    def __str__(self) -> str:
        return self.name


class JobQuerySet(TenantQuerySet):
    """Jobs by where they stand."""

    def waiting(self) -> Self:
        return self.filter(state__lt=int(FIRST_ACTIVE))

    def live(self) -> Self:
        return self.filter(state__lt=int(FIRST_TERMINAL))

    def active(self) -> Self:
        return self.filter(ACTIVE)

    def ended(self) -> Self:
        return self.filter(state__gte=int(FIRST_TERMINAL))


class Job(models.Model):
    """One step of a workflow: a type, a slide, parameters, a branch."""

    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    # no index of their own for tenant and workflow: the composite ones below serve
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="+", db_index=False)
    # a string, upward: nothing here reads an attribute of a workflow but its id
    workflow = models.ForeignKey(
        "workflows.Workflow", on_delete=models.CASCADE, related_name="jobs", db_index=False
    )
    branch = models.ForeignKey(Branch, on_delete=models.PROTECT, related_name="jobs")
    own_branch = models.BooleanField(default=False, help_text="No branch was named.")
    key = models.CharField(max_length=100, help_text="The client's job_id.")
    position = models.PositiveIntegerField(help_text="Place in the submission.")
    sequence = models.BigIntegerField(help_text="Place in the tenant's total order (R2).")
    job_type = models.CharField(max_length=50)
    queue = models.CharField(max_length=20)
    slide = models.ForeignKey(
        "jobs.Slide", null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    params = models.JSONField(default=dict, blank=True)
    priority = models.SmallIntegerField(default=0)
    on_failure = models.CharField(max_length=10, default="continue")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    member = models.BigIntegerField(
        default=0, help_text="The id of created_by, 0 for none: what R5 shares between."
    )
    result_key = models.CharField(
        max_length=64, blank=True, help_text="What the result is a function of (R10)."
    )

    state = models.SmallIntegerField(
        choices=[(state.value, state.name) for state in JobState], default=JobState.PENDING.value
    )
    reason = models.CharField(max_length=20, blank=True)
    error = models.TextField(blank=True, help_text="A sentence for people.")
    upstream_left = models.PositiveIntegerField(default=0)
    attempt = models.PositiveIntegerField(
        default=0, help_text="Rises at each promotion: the fence."
    )
    failures = models.PositiveIntegerField(default=0)
    lost_attempt = models.PositiveIntegerField(
        default=0, db_default=0, help_text="The last one whose lease ran out."
    )
    max_attempts = models.PositiveSmallIntegerField(default=3)
    user_slot = models.ForeignKey(
        "jobs.UserSlot",
        null=True,
        blank=True,
        to_field="holder",
        on_delete=models.PROTECT,
        related_name="+",
    )
    cancel_requested_at = models.DateTimeField(null=True, blank=True)
    summary = models.JSONField(default=dict, blank=True, help_text="Counts of the result.")

    created_at = models.DateTimeField()
    ready_at = models.DateTimeField(null=True, blank=True)
    retry_at = models.DateTimeField(null=True, blank=True)
    queued_at = models.DateTimeField(null=True, blank=True)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    objects = JobQuerySet.as_manager()

    class Meta:
        constraints: ClassVar = [
            # R1: a second job of a branch can not become its head, whatever the code does
            models.UniqueConstraint(
                fields=["branch"], condition=HEAD, name="job_one_head_a_branch"
            ),
            # R4: an active job's tenant holds a user slot, and can not lose it meanwhile
            models.CheckConstraint(
                condition=(ACTIVE & Q(user_slot__isnull=False))
                | (INACTIVE & Q(user_slot__isnull=True)),
                name="job_active_has_user_slot",
            ),
            models.CheckConstraint(
                condition=Q(user_slot__isnull=True) | Q(user_slot=F("tenant")),
                name="job_user_slot_is_its_tenants",
            ),
            models.CheckConstraint(
                condition=Q(state__in=[state.value for state in JobState]), name="job_state_known"
            ),
            models.CheckConstraint(
                condition=Q(on_failure__in=["continue", "halt"]), name="job_on_failure_known"
            ),
            models.UniqueConstraint(fields=["workflow", "key"], name="job_key_once"),
            models.UniqueConstraint(fields=["tenant", "sequence"], name="job_sequence_once"),
        ]
        indexes: ClassVar = [
            # raising a branch's next head: its first waiting job
            models.Index(
                fields=["branch", "sequence"],
                name="job_lane",
                condition=Q(state=int(JobState.PENDING)),
            ),
            # the pass: the first few candidates of each member of a (tenant, queue)
            models.Index(
                F("tenant"),
                F("queue"),
                F("priority") * -1,
                F("member"),
                F("sequence"),
                name="job_candidates",
                condition=Q(state=int(JobState.READY)),
            ),
            # is there a result to reuse?
            models.Index(
                fields=["tenant", "result_key"],
                name="job_reusable",
                condition=Q(state=int(JobState.SUCCEEDED)) & ~Q(result_key=""),
            ),
            # pending counts and caps of a tenant
            models.Index(
                fields=["tenant", "id"],
                name="job_live",
                condition=Q(state__lt=int(FIRST_TERMINAL)),
            ),
            # the sweep: back-offs that are over
            models.Index(
                fields=["retry_at"],
                name="job_retry_due",
                condition=Q(state=int(JobState.RETRY_WAIT)),
            ),
            # does a back-off hold its tenant's user slot?
            models.Index(
                fields=["tenant", "retry_at"],
                name="job_retry_of_tenant",
                condition=Q(state=int(JobState.RETRY_WAIT)),
            ),
            # is a workflow over?
            models.Index(
                fields=["workflow"],
                name="job_live_of_workflow",
                condition=Q(state__lt=int(FIRST_TERMINAL)),
            ),
            # lists: newest first of a tenant; a workflow's jobs in submitted order
            models.Index(fields=["tenant", "-id"], name="job_newest"),
            models.Index(fields=["workflow", "position"], name="job_of_workflow"),
            # metrics of the last minutes
            models.Index(
                fields=["finished_at"],
                name="job_finished",
                condition=Q(state__gte=int(FIRST_TERMINAL)),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.key} ({self.uuid})"

    @property
    def status(self) -> JobState:
        return JobState(self.state)


class Edge(models.Model):
    """`downstream` waits for `upstream`, inside one workflow (R2)."""

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="+")
    upstream = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="edges_down")
    downstream = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="edges_up")
    objects = TenantQuerySet.as_manager()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["upstream", "downstream"], name="edge_once"),
            models.CheckConstraint(
                condition=~Q(upstream=F("downstream")), name="edge_joins_two_jobs"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.upstream_id} → {self.downstream_id}"


class JobProgress(models.Model):
    """How far the present attempt is: a narrow row, because it is written often."""

    job = models.OneToOneField(
        Job, primary_key=True, on_delete=models.CASCADE, related_name="progress_row"
    )
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="+")
    attempt = models.PositiveIntegerField(default=0)
    phase = models.CharField(max_length=20, blank=True)
    progress = models.FloatField(default=0.0, help_text="0-1; never falls within a job.")
    tiles_done = models.PositiveIntegerField(default=0)
    tiles_total = models.PositiveIntegerField(default=0)
    phases = models.JSONField(default=list, blank=True)  # [{"name", "seconds"}]
    updated_at = models.DateTimeField(auto_now=True)
    objects = TenantQuerySet.as_manager()

    def __str__(self) -> str:
        return f"{self.job_id}: {self.progress:.0%}"
