"""How lists are paged: newest first, by cursor, with a bounded `page_size`."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ValidationError
from django.db import DataError
from rest_framework.exceptions import ParseError
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.views import APIView


class NewestFirst(CursorPagination):
    """`{"next", "previous", "results"}`; the view's `ordering` says what newest means."""

    page_size = 50
    max_page_size = 500
    page_size_query_param = "page_size"
    ordering: Any = "-id"

    def paginate_queryset(
        self, queryset: Any, request: Request, view: APIView | None = None
    ) -> list[Any] | None:
        try:
            return super().paginate_queryset(queryset, request, view)
        except (ValueError, OverflowError, ValidationError, DataError) as error:
            raise ParseError("This cursor is no good: take `next` from an answer.") from error

    def get_ordering(self, request: Request, queryset: Any, view: Any) -> tuple[str, ...]:
        named = getattr(view, "ordering", None) or self.ordering
        return (named,) if isinstance(named, str) else tuple(named)
