"""A first look at a model in a throw-away process: one that crashes, or never ends, does so there."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from jobs.imaging import parity
from jobs.imaging.contract import BadInput

MEMORY = 16 << 30
"""Of addresses: torch alone takes a few GB of them."""
CPU_S = 600
"""Of all cores together; whoever starts this bounds the waiting, too."""


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def look(path: Path) -> dict[str, object]:
    """What `path` says of itself and how it compares with its own code, or {"error": a sentence}."""
    try:
        report = parity.check(path)
    except BadInput as error:
        wrong = str(error).replace(str(path), path.name).partition(": give ")[0]
        return {"error": f"{wrong}: give an InstanSeg TorchScript file (instanseg.pt)."}
    except MemoryError:
        return {"error": f"{path.name} needs more than {MEMORY >> 30} GB: give a smaller model."}
    found = ", ".join(
        f"{ours} {name} for {its} (F1 {f1:.3f})"
        for name, its, ours, f1 in zip(
            report.outputs, report.expected, report.found, report.f1, strict=True
        )
    )
    return {
        "outputs": list(report.outputs),
        "pixel_size": report.pixel_size,
        "channels": report.channels,
        "parity": f"Against its own code, on {report.against}: {found}.",
    }


if __name__ == "__main__":
    _limit()
    sys.stdout.write(json.dumps(look(Path(sys.argv[1]))))
