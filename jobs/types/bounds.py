"""Parameters that several job types share: what the pixel size may be, how long a job may take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MPP: Mapping[str, Any] = {
    "type": "number",
    "minimum": 0.1,
    "maximum": 1.0,
    "title": "Pixel size",
    "description": "µm per pixel at full resolution; only for slides that do not say it.",
}
TIMES: Mapping[str, Mapping[str, Any]] = {
    "timeout_s": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 604_800,
        "title": "Time limit",
        "description": "Seconds after which an attempt is stopped; by default none.",
    },
    "stall_s": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 86_400,
        "title": "Longest silence",
        "description": "Seconds without a sign of work after which an attempt is stopped; it can "
        "only raise the server's own bound.",
    },
}
REUSE: Mapping[str, Any] = {
    "type": "boolean",
    "default": True,
    "title": "Reuse",
    "description": "False computes the result again, though an equal job has it already.",
}
NOT_OF_THE_RESULT = frozenset({*TIMES, "reuse", "queue"})
"""Parameters that change when, where or whether a job computes, but not what."""
