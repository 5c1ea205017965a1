"""The tenants app: who owns rows, and the two doors to them."""

from __future__ import annotations

from django.apps import AppConfig


class TenantsConfig(AppConfig):
    """Owns Tenant, Membership and ApiToken."""

    name = "tenants"
