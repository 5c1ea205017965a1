"""Make a bearer token for a tenant's scripts."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from tenants.models import TENANT_KEY, ApiToken, Tenant


class Command(BaseCommand):
    """Prints the token once; only its hash is kept."""

    help = "Make a bearer token for a tenant; the tenant is made when it is new."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("tenant", help="the tenant's key, as in X-User-ID")
        parser.add_argument("name", help="what the token is for, e.g. notebook")

    def handle(self, *args: Any, tenant: str, name: str, **options: Any) -> None:
        if not TENANT_KEY.fullmatch(tenant):
            raise CommandError(
                f"{tenant!r} can not be a tenant: give 1-64 letters, digits or . _ : @ -, "
                "starting with a letter or digit."
            )
        owner, _ = Tenant.objects.get_or_create(key=tenant)
        _, text = ApiToken.issue(owner, name[:100])
        self.stdout.write(text)
        self.stderr.write(f"Shown once. Use it as: Authorization: Bearer {text[:8]}…")
