"""The two doors to tenant-owned rows: `for_tenant` and `across_tenants`. Any other way is an error.

The check sits where SQL is compiled, so a forgotten filter fails loudly instead of leaking rows.
Related managers pass, because the parent row already came through a door.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from django.db import models
from django.db.models import sql

if TYPE_CHECKING:
    from tenants.models import Tenant


class TenantNotNamed(RuntimeError):
    """Tenant-owned rows were asked for without saying whose."""


class TenantQuery(sql.Query):
    """A query that refuses to become SQL until it went through a door."""

    door: str | None = None

    def check_door(self) -> None:
        """Raise TenantNotNamed unless a door was taken."""
        if self.door is None:
            label = self.model._meta.label if self.model else "rows"
            raise TenantNotNamed(
                f"{label} were asked for without a tenant: use for_tenant(tenant) or "
                "across_tenants(reason)."
            )

    def get_compiler(self, *args: Any, **kwargs: Any) -> Any:
        self.check_door()  # every SELECT, count, exists and subquery passes here
        return super().get_compiler(*args, **kwargs)

    def chain(self, klass: Any = None) -> Any:
        # update() and delete() chain into their own Query classes, which have no door
        if klass is not None:
            self.check_door()
        return super().chain(klass)


class TenantQuerySet(models.QuerySet[Any]):
    """A queryset with two doors, closed by default; `as_manager()` of it is a model's `objects`."""

    query: TenantQuery

    def __init__(
        self, model: Any = None, query: Any = None, using: Any = None, hints: Any = None
    ) -> None:
        super().__init__(model, query or TenantQuery(model), using, hints)

    def for_tenant(self, tenant: Tenant | None) -> Self:
        """Rows owned by `tenant`. None is an error, never "everything"."""
        if tenant is None or tenant.pk is None:
            raise TenantNotNamed(f"{self.model._meta.label}: the tenant given is {tenant!r}.")
        return self._through(f"tenant {tenant.pk}").filter(tenant=tenant)

    def across_tenants(self, reason: str) -> Self:
        """Rows of every tenant; `reason` tells the reader why that is right here."""
        if not reason.strip():
            raise TenantNotNamed("across_tenants needs a reason.")
        return self._through(reason)

    def _add_hints(self, **hints: Any) -> None:
        # related managers (workflow.jobs) and prefetches name the parent row, which had a door
        super()._add_hints(**hints)  # type: ignore[misc]  # Django's own hook, not in the stubs
        if (parent := hints.get("instance")) is not None and self.query.door is None:
            self.query.door = f"related to {parent._meta.label} {parent.pk}"

    def _through(self, door: str) -> Self:
        clone = self.all()
        clone.query.door = door
        return clone

    def _checked(self) -> None:
        if isinstance(self.query, TenantQuery):
            self.query.check_door()

    def __or__(self, other: Any) -> Any:
        self._same_door(other)
        return super().__or__(other)

    def __and__(self, other: Any) -> Any:
        self._same_door(other)
        return super().__and__(other)

    def __xor__(self, other: Any) -> Any:
        self._same_door(other)
        return super().__xor__(other)

    def _same_door(self, other: Any) -> None:
        """Raise TenantNotNamed when two querysets of different doors are combined."""
        theirs = getattr(other.query, "door", None)
        if self.query.door is None or theirs is None or self.query.door != theirs:
            raise TenantNotNamed(
                f"{self.model._meta.label}: both sides of a combination must come through the "
                f"same door, these came through {self.query.door!r} and {theirs!r}."
            )

    def update(self, **kwargs: Any) -> int:
        self._checked()
        return super().update(**kwargs)

    def delete(self) -> Any:
        self._checked()
        return super().delete()

    def _raw_delete(self, using: Any) -> int:
        # Django's own cascade builds fresh querysets here: it starts from a row that came
        # through a door, so only calls from outside the collector are refused.
        self._checked()
        return super()._raw_delete(using)

    def raw(self, *args: Any, **kwargs: Any) -> Any:
        raise TenantNotNamed(f"{self.model._meta.label}.raw() has no door: use a cursor instead.")
