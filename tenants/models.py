"""Who owns rows (Tenant), who may act for it (User, Membership), and how scripts sign in (ApiToken)."""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import ClassVar

from django.conf import settings
from django.contrib.auth.models import AbstractUser
from django.core.validators import RegexValidator
from django.db import models
from django.db.models import Q
from django.utils import timezone

TENANT_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}")


class User(AbstractUser):
    """A person. Our own model from the start, because it can not be swapped later."""


class Tenant(models.Model):
    """A lab or a single user: every workflow, job, slide and result belongs to exactly one."""

    key = models.CharField(
        max_length=64,
        unique=True,
        validators=[
            RegexValidator(rf"^{TENANT_KEY.pattern}$", "1-64 of letters, digits, . _ : @ -")
        ],
        help_text="The user id of X-User-ID.",
    )
    name = models.CharField(max_length=200, blank=True)
    weight = models.PositiveSmallIntegerField(default=1, help_text="Share of the workers, R5.")
    paused = models.BooleanField(default=False, help_text="Starts no new job while set.")
    created_at = models.DateTimeField(auto_now_add=True)
    # one counter a tenant puts lanes and edges into one total order (R2); events likewise
    next_sequence = models.BigIntegerField(default=1)
    next_event = models.BigIntegerField(default=1)
    # R11: how many jobs were live when they were counted last, and next_sequence then. Every job
    # that became live since took a number, so most submissions need not count again.
    live_counted = models.BigIntegerField(default=0)
    live_counted_at = models.BigIntegerField(default=1)
    waiting_since = models.DateTimeField(
        null=True, blank=True, help_text="In line for a user slot since, R4."
    )
    served_at = models.DateTimeField(null=True, blank=True, help_text="Last promotion, R5.")

    class Meta:
        indexes: ClassVar = [
            # the pass: who is next in line for a user slot
            models.Index(
                fields=["waiting_since", "id"],
                name="tenant_in_line",
                condition=Q(waiting_since__isnull=False),
            )
        ]
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(weight__gte=1), name="tenant_weight_positive")
        ]

    def __str__(self) -> str:
        return self.key


class Membership(models.Model):
    """What a user may do for a tenant."""

    class Role(models.TextChoices):
        """Viewers read, members submit and cancel, operators steer."""

        VIEWER = "viewer"
        MEMBER = "member"
        OPERATOR = "operator"

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships"
    )
    role = models.CharField(max_length=10, choices=Role, default=Role.MEMBER)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["tenant", "user"], name="membership_once")
        ]

    def __str__(self) -> str:
        return f"{self.user} in {self.tenant} ({self.role})"


class ApiToken(models.Model):
    """A bearer token of a tenant. Only its hash is stored; the text is shown once."""

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="tokens")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.CASCADE)
    name = models.CharField(max_length=100)
    digest = models.CharField(max_length=64, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return f"{self.name} of {self.tenant}"

    @staticmethod
    def digest_of(text: str) -> str:
        """The stored form of a token. SHA-256 is enough: tokens are 256 random bits."""
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def issue(cls, tenant: Tenant, name: str, *, user: User | None = None) -> tuple[ApiToken, str]:
        """Make a token. Returns the row and the text, which can not be read again."""
        text = f"lsd_{secrets.token_urlsafe(32)}"
        row = cls.objects.create(tenant=tenant, user=user, name=name, digest=cls.digest_of(text))
        return row, text

    @classmethod
    def find(cls, text: str) -> ApiToken | None:
        """The live token with this text, or None."""
        now = timezone.now()
        return (
            cls.objects.select_related("tenant", "user")
            .filter(digest=cls.digest_of(text), revoked_at=None)
            .filter(Q(expires_at=None) | Q(expires_at__gt=now))
            .filter(Q(user=None) | Q(user__is_active=True))
            .first()
        )
