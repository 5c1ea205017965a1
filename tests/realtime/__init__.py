"""The live feed on a real Redis."""

from __future__ import annotations
