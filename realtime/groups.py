"""Names of the groups that the feed is sent to; the server makes them, never a client."""

from __future__ import annotations

import hashlib
from functools import lru_cache

from tenants.models import Tenant

EVERYONE = "feed.everyone"
"""Hears numbers about all tenants together, and nothing of any one."""


def tenant_group(key: str) -> str:
    """The group of one tenant. By its key, because a tenant listens before its row is made; hashed,
    because group names hold few characters."""
    return f"feed.{hashlib.sha256(key.encode()).hexdigest()[:40]}"


@lru_cache(maxsize=10_000)
def group_of(tenant_id: int) -> str:
    """The group of the tenant with this row id. Raises Tenant.DoesNotExist."""
    return tenant_group(Tenant.objects.values_list("key", flat=True).get(pk=tenant_id))
