"""What an identity may do: everybody reads their own rows, viewers do not write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rest_framework.exceptions import (
    ErrorDetail,
    NotAuthenticated,
    PermissionDenied,
    Throttled,
)
from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request

from tenants import limiter
from tenants.identity import Identity, how_to_identify

if TYPE_CHECKING:  # its module reads the settings that name this one
    from rest_framework.views import APIView


class HasTenant(BasePermission):
    """A tenant is named and does not ask too fast, and its viewers only read."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        who = request.auth
        if not isinstance(who, Identity):
            raise NotAuthenticated(how_to_identify())
        check_rate(request, who)
        if request.method not in SAFE_METHODS and not who.may_write:
            raise PermissionDenied(
                f"You are a viewer of {who.tenant}: ask an operator of that lab for a member's role."
            )
        return True


def check_rate(request: Request, who: Identity) -> None:
    """Raise Throttled when the tenant asks too fast, unless that was looked at already."""
    refusal = limiter.charge(request._request, who.tenant.key)
    if refusal is not None:
        error = Throttled(wait=refusal.retry_after)
        error.detail = ErrorDetail(refusal.sentence, code=error.default_code)
        raise error
