"""The result files of a job, one module a format; every writer streams."""

from __future__ import annotations
