"""Addresses of workflows, and of the list of jobs: adding one needs both."""

from __future__ import annotations

from tenants.api import either
from workflows.api import DashboardViewSet, JobsViewSet, WorkflowJobsViewSet, WorkflowViewSet

api_urls = [
    *either(
        "workflows",
        WorkflowViewSet.as_view({"get": "list", "post": "create"}),
        name="api-workflows",
    ),
    *either(
        "workflows/<str:id>", WorkflowViewSet.as_view({"get": "retrieve"}), name="api-workflow"
    ),
    *either("workflows/<str:id>/jobs", WorkflowJobsViewSet.as_view({"get": "list"})),
    *either("workflows/<str:id>/cancel", WorkflowViewSet.as_view({"post": "cancel"})),
    *either("workflows/<str:id>/retry", WorkflowViewSet.as_view({"post": "retry"})),
    *either("jobs", JobsViewSet.as_view({"get": "list", "post": "create"}), name="api-jobs"),
    *either("metrics/dashboard", DashboardViewSet.as_view({"get": "retrieve"})),
]
