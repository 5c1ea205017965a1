"""Who asks: the tenant, the person and the role behind a token, a trusted header or a session.

Free of HTTP frameworks, so that the API, the pages and the websocket agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.http import HttpRequest

from tenants.models import TENANT_KEY, ApiToken, Membership, Tenant, User

SESSION_KEY = "tenant"
"""Where a session keeps the key of the tenant that its person chose."""

WRITERS = (Membership.Role.MEMBER, Membership.Role.OPERATOR)


class NotIdentified(Exception):
    """Nobody we know asks; the message says what to send instead."""


class BadUserId(NotIdentified):
    """The user id can not be one."""


class NoTenant(NotIdentified):
    """A person we know, who belongs to no tenant."""


@dataclass(frozen=True)
class Identity:
    """Who asks. `tenant` is unsaved while a trusted id has not written anything yet."""

    tenant: Tenant
    role: str
    user: User | None = None

    @property
    def may_write(self) -> bool:
        return self.role in WRITERS


def by_user_id(text: str) -> Identity:
    """The tenant that a trusted X-User-ID names; a new id is an empty, unsaved tenant."""
    if not TENANT_KEY.fullmatch(text):
        raise BadUserId(
            "This user id can not be used: give 1 to 64 letters, digits, . _ : @ or -, the first "
            "one a letter or a digit."
        )
    return Identity(tenant_of(text), Membership.Role.MEMBER)


def tenant_of(key: str) -> Tenant:
    """The tenant called `key`, or an unsaved one: its first accepted write saves it."""
    return Tenant.objects.filter(key=key).first() or Tenant(key=key)


def by_token(text: str) -> Identity:
    """The tenant whose live token this is."""
    token = ApiToken.find(text)
    if token is None:
        raise NotIdentified(
            "This token is unknown, expired or revoked: ask an operator of your lab for a new one."
        )
    if token.user is None:
        return Identity(token.tenant, Membership.Role.MEMBER)
    membership = Membership.objects.filter(tenant=token.tenant, user=token.user).first()
    if membership is None:
        raise NotIdentified(
            f"The owner of this token no longer belongs to {token.tenant}: use a token of a member."
        )
    return Identity(token.tenant, membership.role, token.user)


def by_session(user: User | AnonymousUser | None, session: Mapping[str, Any]) -> Identity:
    """The tenant that a signed-in person chose, else their first one."""
    if user is None or not isinstance(user, User) or not user.is_active:
        raise NotIdentified(how_to_identify())
    chosen = session.get(SESSION_KEY)
    memberships = list(Membership.objects.filter(user=user).select_related("tenant").order_by("pk"))
    for membership in memberships:
        if membership.tenant.key == chosen:
            return Identity(membership.tenant, membership.role, user)
    if settings.TRUST_USER_HEADER and isinstance(chosen, str) and TENANT_KEY.fullmatch(chosen):
        return Identity(tenant_of(chosen), Membership.Role.MEMBER, user)
    if memberships:
        return Identity(memberships[0].tenant, memberships[0].role, user)
    raise NoTenant("Your account belongs to no lab yet: ask an operator to add you to one.")


def of_request(request: HttpRequest) -> Identity:
    """Who asks for a page, by session. Raises NotIdentified."""
    user = request.user if isinstance(request.user, User) else None
    return by_session(user, request.session)


def how_to_identify() -> str:
    """What someone who sent nothing has to send."""
    ways = "sign in, or send a token as `Authorization: Bearer …`"
    if settings.TRUST_USER_HEADER:
        ways += ", or your user id as `X-User-ID`"
    return f"Nobody is named in this request: {ways}."
