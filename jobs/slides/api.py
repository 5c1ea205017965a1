"""Slides over HTTP, read only: the list, the facts, and deep-zoom tiles through the tenant's door."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

from django.http import HttpResponse, HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import status
from rest_framework.exceptions import APIException, NotFound, ParseError
from rest_framework.request import Request
from rest_framework.response import Response

from jobs.models import Slide
from jobs.serializers import ErrorSerializer, SlideSerializer
from jobs.slides import catalogue, deepzoom
from tenants.api import NOTHING_HERE, TenantViewSet, uuid_or_404

TILE = re.compile(r"(\d{1,9})_(\d{1,9})\.jpe?g")
LEVEL = re.compile(r"\d{1,3}")
PAGE_SIZE, MOST_A_PAGE = 50, 200
THUMBNAIL_SIZES = (32, 1024)
SLIDE_ID = OpenApiParameter("id", OpenApiTypes.UUID, OpenApiParameter.PATH)
REFUSALS = {404: ErrorSerializer, 422: ErrorSerializer}


class NotReadable(APIException):
    """The slide is there, but it can not be opened."""

    status_code = status.HTTP_422_UNPROCESSABLE_ENTITY
    default_code = "unreadable"


class SlideViewSet(TenantViewSet):
    """Slides that the asking tenant may use."""

    queryset = Slide.objects.all()
    serializer_class = SlideSerializer
    pagination_class = None
    filter_backends: list[Any] = []

    @extend_schema(
        parameters=[
            OpenApiParameter("page_size", int, description=f"1 to {MOST_A_PAGE}."),
            OpenApiParameter("cursor", str, description="From `next` of an answer."),
        ],
        responses={200: SlideSerializer(many=True), 400: ErrorSerializer},
    )
    def list(self, request: Request) -> Response:
        """Slide files of the tenant's roots, by name; `note` says why some are missing."""
        size = _page_size(request.query_params.get("page_size", ""))
        after = _decoded(request.query_params.get("cursor"))
        slides, away = catalogue.listed(self.tenant, after=after, most=size + 1)
        shown = slides[:size]
        catalogue.probe_some(shown)
        more = _encoded(shown[-1]) if len(slides) > size else None
        found = [catalogue.shape(slide) for slide in shown]
        page = {"next": self._link(more), "previous": None, "results": found}
        return Response({**page, "note": str(away)} if away else page)

    def _link(self, cursor: str | None) -> str | None:
        if cursor is None:
            return None
        query = self.request.query_params.copy()
        query["cursor"] = cursor
        return self.request.build_absolute_uri(f"?{query.urlencode()}")

    @extend_schema(parameters=[SLIDE_ID], responses={200: SlideSerializer, 404: ErrorSerializer})
    def retrieve(self, request: Request, **kwargs: str) -> Response:
        """One slide and what its file says of itself."""
        return Response(catalogue.shape(self.get_object(), probe=True))

    @extend_schema(
        parameters=[SLIDE_ID], responses={(200, "application/xml"): OpenApiTypes.STR, **REFUSALS}
    )
    def dzi(self, request: Request, **kwargs: str) -> HttpResponseBase:
        """The deep-zoom descriptor."""
        return self._answer("application/xml", deepzoom.descriptor)

    @extend_schema(
        parameters=[
            SLIDE_ID,
            OpenApiParameter("level", int, OpenApiParameter.PATH),
            OpenApiParameter("tile", str, OpenApiParameter.PATH, description="{col}_{row}.jpeg"),
        ],
        responses={(200, "image/jpeg"): OpenApiTypes.BINARY, 304: None, **REFUSALS},
    )
    def tile(self, request: Request, level: str, tile: str, **kwargs: str) -> HttpResponseBase:
        """A deep-zoom tile."""
        place = TILE.fullmatch(tile)
        if place is None or not LEVEL.fullmatch(level):
            raise NotFound(NOTHING_HERE)
        address = int(place[1]), int(place[2])
        return self._answer("image/jpeg", lambda slide: deepzoom.tile(slide, int(level), address))

    @extend_schema(
        parameters=[SLIDE_ID, OpenApiParameter("size", int, description="32 to 1024 pixels.")],
        responses={(200, "image/jpeg"): OpenApiTypes.BINARY, 304: None, **REFUSALS},
    )
    def thumbnail(self, request: Request, **kwargs: str) -> HttpResponseBase:
        """The whole slide as a small picture."""
        low, high = THUMBNAIL_SIZES
        text = request.query_params.get("size", "256")
        size = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 256
        return self._answer(
            "image/jpeg", lambda slide: deepzoom.thumbnail(slide, min(max(size, low), high))
        )

    def get_object(self) -> Slide:
        try:
            return catalogue.find(self.tenant, uuid_or_404(self.kwargs["id"]))
        except catalogue.NoSlide as error:
            raise NotFound(NOTHING_HERE) from error

    def _answer(self, content_type: str, make: Any) -> HttpResponseBase:
        """What `make` draws of the slide, with validators that change with its file."""
        slide = self.get_object()
        try:
            version = catalogue.version_of(catalogue.key_of(slide))
            etag = f'"{version}-{deepzoom.JPEG_QUALITY}"'
            if etag in self.request.headers.get("If-None-Match", ""):
                return self._cached(HttpResponse(status=304), etag, version)
            drawn = make(slide)
        except (catalogue.NoSlide, deepzoom.NoTile) as error:
            raise NotFound(NOTHING_HERE) from error
        except catalogue.Unreadable as error:
            raise NotReadable(str(error)) from error
        return self._cached(HttpResponse(drawn, content_type=content_type), etag, version)

    def _cached(self, response: HttpResponse, etag: str, version: str) -> HttpResponse:
        # an address with the file's version never shows anything else
        named = self.request.query_params.get("v") == version
        response["Cache-Control"] = (
            "private, max-age=86400, immutable" if named else "private, no-cache"
        )
        response["ETag"] = etag
        return response


def _page_size(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 9 and int(text)):
        return PAGE_SIZE
    return min(int(text), MOST_A_PAGE)


def _encoded(slide: Slide) -> str:
    text = json.dumps([slide.root, slide.path])
    return base64.urlsafe_b64encode(text.encode()).decode()


def _decoded(cursor: str | None) -> tuple[str, str] | None:
    if not cursor:
        return None
    try:
        root, path = json.loads(base64.urlsafe_b64decode(cursor.encode()))
    except (binascii.Error, ValueError, TypeError) as error:
        raise ParseError("This cursor is no good: take `next` from an answer.") from error
    return str(root), str(path)
