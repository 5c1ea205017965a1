"""The public id of a slide before anybody used it: the same in every list, process and restart."""

from __future__ import annotations

import json
import uuid

NAMESPACE = uuid.UUID("6f0b1c38-3d0f-5d0b-9c1f-6b7f5f3a2d11")


def slide_uuid(tenant_key: str, root: str, path: str) -> uuid.UUID:
    """The id of the slide at `path` of `root`, as this tenant sees it."""
    # a list, not joined text: ("a/b", "c") and ("a", "b/c") are different slides
    return uuid.uuid5(NAMESPACE, json.dumps([tenant_key, root, path]))
