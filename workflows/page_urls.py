"""The addresses of the pages; all end with a slash, which tells them from the unprefixed API."""

from __future__ import annotations

from django.urls import path

from jobs import pages as job_pages
from tenants import pages as tenant_pages
from workflows import pages, queue_page

urlpatterns = [
    path("", pages.dashboard, name="dashboard"),
    path("run-demo/", pages.run_demo, name="run-demo"),
    path("queue/", queue_page.queue_page, name="queue"),
    path("workflows/<uuid:workflow_id>/", pages.workflow_page, name="workflow-page"),
    path("workflows/<uuid:workflow_id>/cancel/", pages.cancel_workflow, name="workflow-cancel"),
    path("workflows/<uuid:workflow_id>/retry/", pages.retry_workflow, name="workflow-retry"),
    path("jobs/<uuid:job_id>/", job_pages.job_page, name="job-page"),
    path("jobs/<uuid:job_id>/viewer/", job_pages.viewer_page, name="viewer"),
    path("jobs/<uuid:job_id>/cancel/", job_pages.cancel_job, name="job-cancel"),
    path("jobs/<uuid:job_id>/retry/", job_pages.retry_job, name="job-retry"),
    path("sign-in/", tenant_pages.sign_in, name="sign-in"),
    path("sign-out/", tenant_pages.sign_out, name="sign-out"),
    path("tenant/", tenant_pages.switch_tenant, name="switch-tenant"),
]
