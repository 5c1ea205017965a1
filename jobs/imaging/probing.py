"""A first look at a slide in a throw-away process: a file that crashes or stalls the reader does so
there, and a person gets a sentence."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.imaging.contract import BadInput

if TYPE_CHECKING:
    from jobs.imaging.slide import Slide

MEMORY = 4 << 30
CPU_S = 60
"""Seconds of computing; `timeout_s` bounds the waiting, too."""

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class SlideFacts:
    """What a slide says about itself."""

    width: int
    height: int
    levels: list[tuple[int, int]]
    mpp: tuple[float, float] | None
    mpp_source: str
    vendor: str
    objective: float | None
    bounds: tuple[int, int, int, int] | None
    kind: str = "brightfield"
    channels: tuple[str, ...] = ()
    dtype: str = "uint8"


def probe_slide(path: Path, timeout_s: float = 60.0, *, mpp: float | None = None) -> SlideFacts:
    """Open `path` in a child process with bounded memory and time, which can write no file, not even
    a core dump. Raises BadInput."""
    command = [sys.executable, "-m", "jobs.imaging.probing", str(path), json.dumps(mpp)]
    try:
        child = subprocess.run(
            command, cwd=PROJECT, capture_output=True, timeout=timeout_s, check=False, text=True
        )
    except subprocess.TimeoutExpired as error:
        raise BadInput(
            f"{path.name} could not be opened within {timeout_s:g} s. The file may be damaged, or "
            "its storage slow: try again, or copy it to a local disk."
        ) from error
    try:
        answer = json.loads(child.stdout)
    except ValueError as error:
        raise BadInput(
            f"{path.name} made the slide reader fail (exit {child.returncode}). The file is "
            "probably damaged: compare its size with the original and copy it again."
        ) from error
    if "error" in answer:
        raise BadInput(answer["error"])
    return _facts(answer)


def _facts(answer: dict[str, object]) -> SlideFacts:
    for name in ("mpp", "bounds"):
        value = answer[name]
        answer[name] = tuple(value) if isinstance(value, list) else None
    answer["channels"] = tuple(answer["channels"])  # type: ignore[arg-type]
    answer["levels"] = [tuple(level) for level in answer["levels"]]  # type: ignore[attr-defined]
    return SlideFacts(**answer)  # type: ignore[arg-type]


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _look(path: Path, mpp: float | None) -> dict[str, object]:
    from jobs.imaging.slide import open_slide

    _limit()
    try:
        with open_slide(path, mpp=mpp) as slide:
            _try_reading(slide)
            facts = SlideFacts(
                width=slide.width,
                height=slide.height,
                levels=[(level.width, level.height) for level in slide.levels],
                mpp=slide.mpp,
                mpp_source=slide.mpp_source,
                vendor=slide.vendor,
                objective=slide.objective,
                bounds=slide.bounds,
                kind=slide.kind,
                channels=slide.channels,
                dtype=str(slide.dtype),
            )
    except BadInput as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": f"{path.name} needs more than 4 GB just to be opened: it is damaged."}
    return asdict(facts)


def _try_reading(slide: Slide) -> None:
    """Raise BadInput where nothing can be read; a damaged place is no reason, but a gap later."""
    last = slide.levels[-1]
    width, height = min(64, last.width), min(64, last.height)
    for part in (0.5, 0.0, 0.25, 0.75, 1.0):
        x_lv, y_lv = int(part * (last.width - width)), int(part * (last.height - height))
        corner = round(x_lv * last.downsample_x), round(y_lv * last.downsample_y)
        try:
            slide.read(last.index, *corner, (width, height))
            return
        except BadInput as error:
            problem = error
    raise problem


if __name__ == "__main__":
    # numpy's threads spin as they start, which is a third of what the child computes, for nothing
    os.putenv("OPENBLAS_NUM_THREADS", "1")
    sys.stdout.write(json.dumps(_look(Path(sys.argv[1]), json.loads(sys.argv[2]))))
