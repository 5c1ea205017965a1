"""The base of every admin page here: rows are seen and steered, never edited by hand."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest


class ReadOnlyAdmin(admin.ModelAdmin):
    """Shows rows of all tenants; changes go through actions, which call the services."""

    show_full_result_count = False  # a count of a million jobs would cost more than the page
    list_per_page = 50

    def get_queryset(self, request: HttpRequest) -> Any:
        rows = self.model._default_manager.all()
        if hasattr(rows, "across_tenants"):
            rows = rows.across_tenants("operators see every tenant")
        ordering = self.get_ordering(request)
        return rows.order_by(*ordering) if ordering else rows

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
