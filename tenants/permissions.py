"""What an identity may do: everybody reads their own rows, viewers do not write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rest_framework.exceptions import NotAuthenticated, PermissionDenied
from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request

from tenants.identity import Identity, how_to_identify

if TYPE_CHECKING:  # its module reads the settings that name this one
    from rest_framework.views import APIView


class HasTenant(BasePermission):
    """A tenant is named, and its viewers only read."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        who = request.auth
        if not isinstance(who, Identity):
            raise NotAuthenticated(how_to_identify())
        if request.method not in SAFE_METHODS and not who.may_write:
            raise PermissionDenied(
                f"You are a viewer of {who.tenant}: ask an operator of that lab for a member's role."
            )
        return True
