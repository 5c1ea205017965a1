"""Addresses of jobs and slides, below /api and without it. The list of jobs is in workflows/urls.py."""

from __future__ import annotations

from jobs.api import JobViewSet, VisualizationViewSet
from jobs.networks_api import ModelsView
from jobs.slides.api import SlideViewSet
from tenants.api import either

api_urls = [
    *either("jobs/<str:id>", JobViewSet.as_view({"get": "retrieve"}), name="api-job"),
    *either("jobs/<str:id>/cancel", JobViewSet.as_view({"post": "cancel"})),
    *either("jobs/<str:id>/retry", JobViewSet.as_view({"post": "retry"})),
    *either("jobs/<str:id>/why", JobViewSet.as_view({"get": "why"})),
    *either("jobs/<str:id>/result", JobViewSet.as_view({"get": "result"})),
    *either("jobs/<str:id>/results", JobViewSet.as_view({"get": "results"})),
    *either("jobs/<str:id>/artifacts", JobViewSet.as_view({"get": "artifacts"})),
    *either("jobs/<str:id>/artifacts/<str:name>", JobViewSet.as_view({"get": "artifact"})),
    *either("jobs/<str:id>/cells", JobViewSet.as_view({"get": "cells"})),
    *either("jobs/<str:id>/cells/<str:number>", JobViewSet.as_view({"get": "cell"})),
    *either(
        "visualization/<str:id>/visualization", VisualizationViewSet.as_view({"get": "retrieve"})
    ),
    *either("models", ModelsView.as_view(), name="api-models"),
    *either("slides", SlideViewSet.as_view({"get": "list"})),
    *either("slides/<str:id>.dzi", SlideViewSet.as_view({"get": "dzi"})),
    *either("slides/<str:id>_files/<str:level>/<str:tile>", SlideViewSet.as_view({"get": "tile"})),
    *either("slides/<str:id>/thumbnail", SlideViewSet.as_view({"get": "thumbnail"})),
    *either("slides/<str:id>", SlideViewSet.as_view({"get": "retrieve"}), name="api-slide"),
]
