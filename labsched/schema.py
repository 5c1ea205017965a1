"""How the schema names the three ways in. Imported when the schema is made."""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension


class BearerScheme(OpenApiAuthenticationExtension):
    """Scripts."""

    target_class = "tenants.authentication.BearerAuthentication"
    name = "token"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer"}


class UserHeaderScheme(OpenApiAuthenticationExtension):
    """The demo, or a proxy that signs people in."""

    target_class = "tenants.authentication.UserHeaderAuthentication"
    name = "user"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "apiKey", "in": "header", "name": "X-User-ID"}


class SessionScheme(OpenApiAuthenticationExtension):
    """Pages."""

    target_class = "tenants.authentication.TenantSessionAuthentication"
    name = "session"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "apiKey", "in": "cookie", "name": "sessionid"}
