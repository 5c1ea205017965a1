"""Idempotency-Key (R10): a submission that is repeated gets the first one's answer, for a day.

A key is kept in the transaction that accepts the submission, under the tenant's row lock. So of two
at the same moment the second waits and then finds the first; what is refused keeps no key.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
import uuid
from dataclasses import dataclass

from django.utils import timezone

from jobs.signals import tidied
from tenants.models import Tenant
from workflows.models import KeptKey

KEPT = dt.timedelta(hours=24)
KEY = re.compile(r"[\x21-\x7e]{1,255}")


class BadKey(ValueError):
    """The header can not be a key; the text is a sentence."""


class KeyReused(Exception):
    """The key came with another submission before; nothing was written."""


@dataclass(frozen=True)
class Once:
    """A submission that its client may repeat."""

    key: str
    digest: str


def once(key: str | None, kind: str, body: object) -> Once | None:
    """The submission of `body` to `kind` under `key`; None without a key. Raises BadKey.

    The same body is the same JSON value: spaces and the order of names do not matter.
    """
    if key is None:
        return None
    if not KEY.fullmatch(key):
        raise BadKey("Idempotency-Key: give 1 to 255 visible ASCII characters without spaces.")
    text = json.dumps([kind, body], sort_keys=True, separators=(",", ":"))
    return Once(key, hashlib.sha256(text.encode()).hexdigest())


def made_before(tenant: Tenant, wanted: Once | None) -> uuid.UUID | None:
    """The id of what this submission made when it came first, if it did. Raises KeyReused."""
    if wanted is None or tenant._state.adding:
        return None
    kept = (
        KeptKey.objects.for_tenant(tenant)
        .filter(key=wanted.key, at__gt=timezone.now() - KEPT)
        .first()
    )
    if kept is None:
        return None
    if kept.digest != wanted.digest:
        raise KeyReused(
            "This Idempotency-Key came with another submission before: send a new key, or the "
            "same address and body."
        )
    made: uuid.UUID = kept.made
    return made


def keep(tenant: Tenant, wanted: Once | None, made: uuid.UUID) -> None:
    """Remember what was made. The caller holds the tenant's row and found nothing made before."""
    if wanted is None:
        return
    rows = KeptKey.objects.for_tenant(tenant)
    rows.filter(key=wanted.key).delete()  # past its day, or what it made is gone
    KeptKey.objects.create(
        tenant=tenant, key=wanted.key, digest=wanted.digest, made=made, at=timezone.now()
    )


def forget_old() -> int:
    """Drop the keys that are past their day. Returns how many."""
    rows = KeptKey.objects.across_tenants("retention").filter(at__lte=timezone.now() - KEPT)
    return int(rows.delete()[0])


def connect() -> None:
    """Drop old keys whenever a scheduler tidies."""
    tidied.connect(_on_tidied, dispatch_uid="workflows.idempotency")


def _on_tidied(**_: object) -> None:
    forget_old()
