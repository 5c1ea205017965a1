"""The operator account of a fresh start and its one-time sign-in link."""

from __future__ import annotations

from django.conf import settings
from django.core import signing

from tenants.models import Membership, Tenant, User

OPERATOR = "operator"
SALT = "labsched.sign-in"


def ensure_operator() -> User:
    """The operator account with its own tenant; made on the first start, without a password."""
    user, made = User.objects.get_or_create(
        username=OPERATOR, defaults={"is_staff": True, "is_superuser": True}
    )
    if made:
        user.set_unusable_password()
        user.save(update_fields=["password"])
    tenant, _ = Tenant.objects.get_or_create(key=OPERATOR, defaults={"name": "Operator"})
    Membership.objects.get_or_create(
        tenant=tenant, user=user, defaults={"role": Membership.Role.OPERATOR}
    )
    return user


def link(user: User) -> str:
    """A path that signs `user` in once: using it changes last_login, which the token names."""
    return f"/sign-in/?token={signing.dumps([user.pk, _stamp(user)], salt=SALT)}"


def user_of(token: str) -> User | None:
    """The user a sign-in token names, or None when it is wrong, too old or already used."""
    try:
        pk, stamp = signing.loads(token, salt=SALT, max_age=settings.SIGN_IN_LINK_MAX_AGE_S)
    except (signing.BadSignature, ValueError, TypeError):
        return None
    user = User.objects.filter(pk=pk, is_active=True).first()
    return user if user and _stamp(user) == stamp else None


def _stamp(user: User) -> str:
    return user.last_login.isoformat() if user.last_login else ""
