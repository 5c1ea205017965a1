"""The three ways in to the API: bearer token, trusted user header, session with CSRF.

Each one leaves an `Identity` in `request.auth`.
"""

from __future__ import annotations

from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from rest_framework.authentication import (
    BaseAuthentication,
    SessionAuthentication,
    get_authorization_header,
)
from rest_framework.exceptions import AuthenticationFailed, ParseError, PermissionDenied
from rest_framework.request import Request

from tenants import identity
from tenants.identity import Identity
from tenants.models import User

Found = tuple[User | AnonymousUser, Identity]


class BearerAuthentication(BaseAuthentication):
    """`Authorization: Bearer <token>`, for scripts."""

    def authenticate(self, request: Request) -> Found | None:
        words = get_authorization_header(request).split()
        if not words or words[0].lower() != b"bearer":
            return None
        if len(words) != 2:
            raise AuthenticationFailed("Send the token as `Authorization: Bearer <token>`.")
        try:
            found = identity.by_token(words[1].decode("latin-1"))
        except identity.NotIdentified as error:
            raise AuthenticationFailed(str(error)) from error
        return found.user or AnonymousUser(), found

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="labsched"'


class UserHeaderAuthentication(BaseAuthentication):
    """`X-User-ID: <id>`, only where TRUST_USER_HEADER is on; elsewhere the header says nothing."""

    def authenticate(self, request: Request) -> Found | None:
        text = request.META.get("HTTP_X_USER_ID")
        if text is None or not settings.TRUST_USER_HEADER:
            return None
        try:
            return AnonymousUser(), identity.by_user_id(text)
        except identity.BadUserId as error:
            raise ParseError(str(error)) from error


class TenantSessionAuthentication(SessionAuthentication):
    """The session of a signed-in person; writes need the CSRF token."""

    def authenticate(self, request: Request) -> Found | None:
        found = super().authenticate(request)
        if found is None:
            return None
        try:
            return found[0], identity.by_session(found[0], request._request.session)
        except identity.NotIdentified as error:
            raise PermissionDenied(str(error)) from error
