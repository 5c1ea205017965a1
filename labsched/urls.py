"""Every address of the project, in the order in which they are tried."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path
from drf_spectacular.views import (
    SpectacularJSONAPIView,
    SpectacularRedocView,
    SpectacularSwaggerSplitView,
)

from jobs.urls import api_urls as job_urls
from labsched import health, views
from labsched.unprefixed import without_prefix
from tenants.api import either
from workflows.urls import api_urls as workflow_urls

api_urls = [*workflow_urls, *job_urls]

urlpatterns = [
    path("api/", include(api_urls)),
    *either("api/schema", SpectacularJSONAPIView.as_view(), name="schema"),
    *either("docs", SpectacularSwaggerSplitView.as_view(url_name="schema"), name="docs"),
    *either("redoc", SpectacularRedocView.as_view(url_name="schema"), name="redoc"),
    path("redoc/script.js", views.redoc_script, name="redoc-script"),
    *either("health", health.health, name="health"),
    *either("health/live", health.live),
    *either("metrics", views.metrics, name="metrics"),
    path("admin/django-rq/", include("django_rq.urls")),
    path("admin/", admin.site.urls),
    path("", include("workflows.page_urls")),
    *without_prefix(api_urls),
]

handler400 = views.refused
handler404 = views.not_found
handler500 = views.fault
