"""The base of every view that shows a tenant its rows: one door, and one answer for what is not there."""

from __future__ import annotations

import uuid
from typing import Any, cast

from django.urls import URLPattern, path
from rest_framework.exceptions import NotFound
from rest_framework.viewsets import GenericViewSet

from tenants.identity import Identity
from tenants.models import Tenant
from tenants.scoping import TenantQuerySet

NOTHING_HERE = "There is nothing of yours at this address: check the id."


class TenantViewSet(GenericViewSet[Any]):
    """Rows of the asking tenant alone. Missing, foreign and garbled ids answer alike."""

    id_field = "pk"
    """The field that an id of the address names; always a UUID."""

    @property
    def identity(self) -> Identity:
        return cast(Identity, self.request.auth)

    @property
    def tenant(self) -> Tenant:
        return self.identity.tenant

    def get_queryset(self) -> TenantQuerySet:
        rows: TenantQuerySet = cast(Any, self).queryset
        if self.tenant._state.adding:
            return rows.across_tenants("a tenant that never wrote owns no rows").none()
        return rows.for_tenant(self.tenant)

    def get_object(self) -> Any:
        """The row of this address. Raises NotFound, the same for foreign as for unknown ids."""
        wanted = uuid_or_404(self.kwargs["id"])
        row = self.filtered(self.get_queryset()).filter(**{self.id_field: wanted}).first()
        if row is None:
            raise NotFound(NOTHING_HERE)
        return row

    def filtered(self, rows: TenantQuerySet) -> TenantQuerySet:
        """`rows` with what the action loads beside them."""
        return rows


def uuid_or_404(text: object) -> uuid.UUID:
    """`text` as a UUID; anything else is an unknown id."""
    try:
        return uuid.UUID(str(text))
    except ValueError:
        raise NotFound(NOTHING_HERE) from None


def either(route: str, view: Any, *, name: str = "") -> list[URLPattern]:
    """The addresses `route` and `route/` of one view; links use the first."""
    return [path(route, view, name=name or None), path(f"{route}/", view)]
