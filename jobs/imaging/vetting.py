"""A first look at a model in a throw-away process: one that crashes, or never ends, does so there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from jobs.imaging import parity
from jobs.imaging.contract import BadInput


def look(path: Path) -> dict[str, object]:
    """What `path` says of itself and how it compares with its own code, or {"error": a sentence}."""
    try:
        report = parity.check(path)
    except BadInput as error:
        wrong = str(error).replace(str(path), path.name).partition(": give ")[0]
        return {"error": f"{wrong}: give an InstanSeg TorchScript file (instanseg.pt)."}
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
    sys.stdout.write(json.dumps(look(Path(sys.argv[1]))))
