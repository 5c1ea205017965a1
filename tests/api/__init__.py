"""The REST API on a real database."""

from __future__ import annotations
