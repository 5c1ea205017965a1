"""Tenants, members and tokens for operators; pausing a tenant is an action."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.contrib.auth.admin import UserAdmin
from django.db.models import QuerySet
from django.http import HttpRequest

from tenants.models import ApiToken, Membership, Tenant, User
from tenants.readonly import ReadOnlyAdmin

admin.site.site_header = "labsched"
admin.site.site_title = "labsched"
admin.site.index_title = "Operators"
admin.site.register(User, UserAdmin)  # accounts are Django's own affair, and editable


@admin.register(Tenant)
class TenantAdmin(ReadOnlyAdmin):
    """Who is active, who waits, who is paused."""

    list_display = ["key", "name", "weight", "paused", "waiting_since", "served_at", "created_at"]
    list_filter = ["paused"]
    search_fields = ["key", "name"]
    actions = ["pause", "resume"]

    @admin.action(description="Pause: start no new job of these tenants")
    def pause(self, request: HttpRequest, rows: QuerySet[Tenant]) -> None:
        self._set_paused(request, rows, True)

    @admin.action(description="Resume")
    def resume(self, request: HttpRequest, rows: QuerySet[Tenant]) -> None:
        self._set_paused(request, rows, False)

    def _set_paused(self, request: HttpRequest, rows: Any, paused: bool) -> None:
        for tenant in rows:
            self.log_change(request, tenant, "paused" if paused else "resumed")
        count = rows.order_by().update(paused=paused)
        messages.success(request, f"{count} tenants {'paused' if paused else 'resumed'}.")


@admin.register(Membership)
class MembershipAdmin(admin.ModelAdmin):
    """Who may act for a tenant: given and taken here."""

    list_display = ["tenant", "user", "role"]
    list_select_related = ["tenant", "user"]
    list_filter = ["role"]
    autocomplete_fields = ["tenant", "user"]
    search_fields = ["tenant__key", "user__username"]


@admin.register(ApiToken)
class ApiTokenAdmin(ReadOnlyAdmin):
    """Tokens by name; their text is never shown."""

    list_display = ["name", "tenant", "user", "created_at", "expires_at", "revoked_at"]
    list_select_related = ["tenant", "user"]
    fields = ["name", "tenant", "user", "created_at", "expires_at", "revoked_at"]
