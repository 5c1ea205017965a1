"""Jobs over HTTP: look, cancel, retry, ask why, fetch results. Adding one is in workflows/api.py."""

from __future__ import annotations

from typing import Any, cast

import django_filters as filters
from django.http import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from jobs import downloads, results, retrying, services
from jobs.details import whole, with_lists
from jobs.models import Job
from jobs.models.jobs import JobQuerySet
from jobs.scheduling import explain
from jobs.serializers import (
    ArtifactSerializer,
    CellSerializer,
    CellWindowSerializer,
    ErrorSerializer,
    ResultsSerializer,
    VisualizationSerializer,
    WholeJobSerializer,
    WhySerializer,
)
from jobs.shapes import artifact_shape
from jobs.states import PUBLIC_STATES, states_of
from tenants.api import NOTHING_HERE, TenantViewSet
from tenants.scoping import TenantQuerySet

CELLS_A_PAGE = 1000
MOST_CELLS = 20_000
JOB_ID = OpenApiParameter("id", OpenApiTypes.UUID, OpenApiParameter.PATH)
REFUSALS = {404: ErrorSerializer, 409: ErrorSerializer}


class JobFilter(filters.FilterSet):
    """`?state=&branch=&type=&workflow=`."""

    state = filters.ChoiceFilter(
        choices=[(name, name) for name in PUBLIC_STATES], method="in_state"
    )
    branch = filters.CharFilter(field_name="branch__name")
    type = filters.CharFilter(field_name="job_type")
    workflow = filters.UUIDFilter(field_name="workflow_id")

    def in_state(self, jobs: JobQuerySet, name: str, value: str) -> JobQuerySet:
        codes = states_of(value)
        return jobs.filter(state__gte=codes.start, state__lt=codes.stop)


class JobViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, TenantViewSet):
    """Jobs of the asking tenant."""

    queryset = Job.objects.all()
    serializer_class = WholeJobSerializer
    filterset_class: type[JobFilter] | None = JobFilter
    id_field = "uuid"
    ordering = "-id"

    def filtered(self, rows: TenantQuerySet) -> TenantQuerySet:
        return with_lists(rows)

    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """The tenant's jobs, newest first."""
        rows = cast(TenantQuerySet, self.filter_queryset(self.get_queryset()))
        page = self.paginate_queryset(with_lists(rows))
        return self.get_paginated_response([whole(job) for job in page or []])

    @extend_schema(parameters=[JOB_ID], responses={200: WholeJobSerializer, 404: ErrorSerializer})
    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """One job: state, progress, phases, attempts, files."""
        return Response(whole(self.get_object()))

    @extend_schema(
        request=None, parameters=[JOB_ID], responses={200: WholeJobSerializer, **REFUSALS}
    )
    def cancel(self, request: Request, **kwargs: str) -> Response:
        """Cancel a job that is not over: waiting ones at once, a running one within 2 seconds."""
        return self._moved(services.cancel)

    @extend_schema(
        request=None, parameters=[JOB_ID], responses={200: WholeJobSerializer, **REFUSALS}
    )
    def retry(self, request: Request, **kwargs: str) -> Response:
        """Run a failed or cancelled job, or one with gaps, again, at the end of its branch."""
        return self._moved(retrying.retry)

    def _moved(self, move: Any) -> Response:
        """The job after `move`, or 409 with the reason why it can not be made."""
        try:
            move(self.get_object())
        except services.StaleTransition as error:
            return Response({"detail": str(error)}, status=409)
        return Response(whole(self.get_object()))

    @extend_schema(parameters=[JOB_ID], responses={200: WhySerializer, 404: ErrorSerializer})
    def why(self, request: Request, **kwargs: str) -> Response:
        """Which rule holds a waiting job, behind what, and when it may start."""
        return Response(explain.why(self.get_object()))

    @extend_schema(parameters=[JOB_ID], responses={(200, "*/*"): OpenApiTypes.BINARY, **REFUSALS})
    def result(self, request: Request, **kwargs: str) -> HttpResponseBase:
        """The main file: JSONL of cells, or the PNG mask."""
        return downloads.send(request._request, results.main(self.get_object()))

    @extend_schema(
        parameters=[
            JOB_ID,
            OpenApiParameter("page", int, description="From 1; without it the whole document."),
            OpenApiParameter("page_size", int, description=f"1 to {MOST_CELLS}."),
        ],
        responses={200: ResultsSerializer, 400: ErrorSerializer, **REFUSALS},
    )
    def results(self, request: Request, **kwargs: str) -> HttpResponseBase:
        """The result document: all of it, or `?page` of its cells."""
        job = self.get_object()
        document = results.document(job)
        if "page" not in request.query_params or document.kind != "segmentation":
            return downloads.send(request._request, document, attachment=False)
        number = _whole_number(request, "page", 1, 10**9)
        size = _whole_number(request, "page_size", CELLS_A_PAGE, MOST_CELLS)
        found = results.page_of_cells(job, number, size)
        return Response({**found, **self._neighbours(number, found["pages"])})

    def _neighbours(self, number: int, pages: int) -> dict[str, str | None]:
        query = self.request.query_params.copy()

        def link(to: int) -> str:
            query["page"] = str(to)
            return self.request.build_absolute_uri(f"?{query.urlencode()}")

        return {
            "next": link(number + 1) if number < pages else None,
            "previous": link(number - 1) if number > 1 else None,
        }

    @extend_schema(
        parameters=[JOB_ID], responses={200: ArtifactSerializer(many=True), 404: ErrorSerializer}
    )
    def artifacts(self, request: Request, **kwargs: str) -> Response:
        """The files that the job left."""
        job = self.get_object()
        files = [artifact_shape(job, artifact) for artifact in job.artifacts.all()]
        return Response({"next": None, "previous": None, "results": files})

    @extend_schema(
        parameters=[JOB_ID, OpenApiParameter("name", str, OpenApiParameter.PATH)],
        responses={
            (200, "*/*"): OpenApiTypes.BINARY,
            (206, "*/*"): OpenApiTypes.BINARY,
            404: ErrorSerializer,
            416: None,
        },
    )
    def artifact(self, request: Request, name: str, **kwargs: str) -> HttpResponseBase:
        """One file; range requests are answered."""
        for each in self.get_object().artifacts.all():
            if each.name == name:
                return downloads.send(request._request, each)
        raise NotFound(NOTHING_HERE)

    @extend_schema(
        parameters=[
            JOB_ID,
            OpenApiParameter("bbox", str, required=True, description="x0,y0,x1,y1, level-0 pixels"),
            OpenApiParameter("limit", int, description=f"1 to {MOST_CELLS}."),
        ],
        responses={200: CellWindowSerializer, 400: ErrorSerializer, **REFUSALS},
    )
    def cells(self, request: Request, **kwargs: str) -> Response:
        """The cells that touch a window of the slide; of a running job those found so far."""
        job = self.get_object()
        box = results.parse_box(request.query_params.get("bbox", ""))
        return Response(results.window(job, box, _whole_number(request, "limit", 5000, MOST_CELLS)))

    @extend_schema(
        operation_id="jobs_cell_retrieve",
        parameters=[JOB_ID, OpenApiParameter("number", int, OpenApiParameter.PATH)],
        responses={200: CellSerializer, **REFUSALS},
    )
    def cell(self, request: Request, number: str, **kwargs: str) -> Response:
        """One cell."""
        job = self.get_object()
        if not (number.isascii() and number.isdigit() and len(number) < 16):
            raise NotFound(NOTHING_HERE)
        return Response(results.one_cell(job, int(number)))


class VisualizationViewSet(TenantViewSet):
    """What a viewer needs."""

    queryset = Job.objects.all()
    serializer_class = VisualizationSerializer
    id_field = "uuid"

    def filtered(self, rows: TenantQuerySet) -> TenantQuerySet:
        return with_lists(rows).select_related("slide__tenant")

    @extend_schema(
        parameters=[JOB_ID], responses={200: VisualizationSerializer, 404: ErrorSerializer}
    )
    def retrieve(self, request: Request, **kwargs: str) -> Response:
        """A job over its slide: tiles, layers, bounds, counts."""
        return Response(results.visualization(self.get_object()))


def _whole_number(request: Request, name: str, default: int, most: int) -> int:
    """Query parameter `name`, between 1 and `most`. Raises ValidationError."""
    text = request.query_params.get(name, "")
    if not text and name != "page":
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) >= 1):
        raise ValidationError({name: [f"Give a whole number from 1 to {most}."]})
    return min(int(text), most)
