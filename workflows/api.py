"""Workflows over HTTP: submit, look, cancel, retry, and add a job."""

from __future__ import annotations

from typing import Any, cast

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins
from rest_framework.exceptions import APIException, ErrorDetail, Throttled, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from jobs.api import JOB_ID, JobViewSet
from jobs.details import whole, with_lists
from jobs.models import Job
from jobs.models.jobs import JobQuerySet
from jobs.serializers import ErrorSerializer, WholeJobSerializer
from tenants.api import TenantViewSet, uuid_or_404
from workflows import dashboard, idempotency, progress, submission
from workflows.idempotency import Once
from workflows.models import Workflow
from workflows.serializers import (
    AddedJobSerializer,
    DashboardSerializer,
    WorkflowInSerializer,
    WorkflowSerializer,
    WorkflowStateSerializer,
)
from workflows.shapes import workflow_accepted, workflow_detail, workflow_state
from workflows.spec import SpecError

RETRY_AFTER_S = 30
REFUSALS = {400: ErrorSerializer, 404: ErrorSerializer, 409: ErrorSerializer}
IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    str,
    OpenApiParameter.HEADER,
    description="1 to 255 visible ASCII characters, kept 24 hours. The same submission again is "
    "answered with what the first one made, as it is now; another one with the same key is 422.",
)


class KeyReused(APIException):
    """The Idempotency-Key came with another submission."""

    status_code = 422
    default_code = "key_reused"


class Conflicting(APIException):
    """The row is in a state that does not allow this."""

    status_code = 409
    default_code = "conflict"


def write(action: Any, *arguments: Any, **named: Any) -> Any:
    """What `action` of workflows.submission returns; its refusals become 400, 409, 422 and 429."""
    try:
        return action(*arguments, **named)
    except SpecError as error:
        raise ValidationError(error.errors) from error
    except submission.Conflict as error:
        raise Conflicting(str(error)) from error
    except idempotency.KeyReused as error:
        raise KeyReused(str(error)) from error
    except submission.TooManyPending as error:
        refusal = Throttled(wait=RETRY_AFTER_S)
        refusal.detail = ErrorDetail(str(error), code=refusal.default_code)
        raise refusal from error


def once_of(request: Request, kind: str) -> Once | None:
    """The submission that the client may repeat; None without Idempotency-Key."""
    try:
        return idempotency.once(request.headers.get("Idempotency-Key"), kind, request.data)
    except idempotency.BadKey as error:
        raise ValidationError({"detail": str(error)}) from error


class WorkflowViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, TenantViewSet):
    """Workflows of the asking tenant."""

    queryset = Workflow.objects.select_related("tenant")
    serializer_class = WorkflowSerializer
    ordering = ("-created_at", "id")

    @extend_schema(responses={200: WorkflowStateSerializer(many=True), 400: ErrorSerializer})
    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """The tenant's workflows, newest first, without their jobs."""
        page = self.paginate_queryset(self.get_queryset())
        return self.get_paginated_response([workflow_state(each) for each in page or []])

    @extend_schema(
        request=WorkflowInSerializer,
        parameters=[IDEMPOTENCY_KEY],
        responses={
            201: WorkflowSerializer,
            400: ErrorSerializer,
            422: ErrorSerializer,
            429: ErrorSerializer,
        },
    )
    def create(self, request: Request) -> Response:
        """Submit a workflow. All of it is accepted, or nothing is written."""
        made = write(
            submission.accept,
            self.tenant,
            request.data,
            user=self.identity.user,
            once=once_of(request, "workflow"),
        )
        if made.jobs is None:
            return Response(workflow_detail(made.workflow), status=201)
        return Response(workflow_accepted(made.workflow, made.jobs, made.edges), status=201)

    @extend_schema(parameters=[JOB_ID], responses={200: WorkflowSerializer, 404: ErrorSerializer})
    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """One workflow with its jobs, edges and progress."""
        return Response(workflow_detail(progress.apply(self.get_object())))

    @extend_schema(
        request=None, parameters=[JOB_ID], responses={200: WorkflowSerializer, **REFUSALS}
    )
    def cancel(self, request: Request, **kwargs: str) -> Response:
        """Cancel every job of the workflow that is not over."""
        return Response(workflow_detail(write(submission.cancel, self.get_object())))

    @extend_schema(
        request=None, parameters=[JOB_ID], responses={200: WorkflowSerializer, **REFUSALS}
    )
    def retry(self, request: Request, **kwargs: str) -> Response:
        """Run what failed again, and what was cancelled because of it; else what has gaps."""
        return Response(workflow_detail(write(submission.retry, self.get_object())))


class WorkflowJobsViewSet(JobViewSet):
    """The jobs of one workflow, in submitted order."""

    ordering = "position"
    filterset_class = None

    @extend_schema(
        parameters=[JOB_ID], responses={200: WholeJobSerializer(many=True), 404: ErrorSerializer}
    )
    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """The jobs of one workflow, in submitted order."""
        workflow = find_workflow(self, self.kwargs["id"])
        jobs = with_lists(self.get_queryset().filter(workflow=workflow))
        page = self.paginate_queryset(jobs)
        return self.get_paginated_response([whole(job) for job in page or []])


class JobsViewSet(JobViewSet):
    """The tenant's jobs, and the way to add one."""

    @extend_schema(
        parameters=[
            OpenApiParameter("page_size", int, description="1 to 500."),
        ],
        responses={200: WholeJobSerializer(many=True), 400: ErrorSerializer},
    )
    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """The tenant's jobs, newest first."""
        return super().list(request, *args, **kwargs)

    @extend_schema(
        request=AddedJobSerializer,
        parameters=[IDEMPOTENCY_KEY],
        responses={
            201: WholeJobSerializer,
            422: ErrorSerializer,
            429: ErrorSerializer,
            **REFUSALS,
        },
    )
    def create(self, request: Request) -> Response:
        """Add one job to a workflow that is not cancelled."""
        if not isinstance(request.data, dict):
            raise ValidationError({"detail": "Give a JSON object."})
        wanted = request.data.get("workflow_id")
        if not isinstance(wanted, str):
            raise ValidationError({"workflow_id": ["Give the id of a workflow of yours."]})
        workflow = find_workflow(self, wanted)
        job = write(
            submission.add_job,
            self.tenant,
            workflow,
            request.data,
            user=self.identity.user,
            once=once_of(request, "job"),
        )
        mine = Job.objects.for_tenant(job.tenant).filter(pk=job.pk)
        return Response(whole(with_lists(mine).get()), status=201)


def find_workflow(view: TenantViewSet, text: str) -> Workflow:
    """The asking tenant's workflow with this id. Raises NotFound."""
    door = WorkflowViewSet(request=view.request, kwargs={"id": str(uuid_or_404(text))})
    found: Workflow = door.get_object()
    return found


class DashboardViewSet(TenantViewSet):
    """Numbers of a dashboard."""

    queryset = Job.objects.all()
    serializer_class = DashboardSerializer

    @extend_schema(responses=DashboardSerializer)
    def retrieve(self, request: Request) -> Response:
        """Branches and jobs of the asking tenant, totals of all."""
        return Response(dashboard.numbers(cast(JobQuerySet, self.get_queryset())))
