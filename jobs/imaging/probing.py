"""A first look at a slide in a throw-away process: a file that crashes or stalls the reader does so
there, and a person gets a sentence."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.imaging.contract import BadInput

MEMORY = 4 << 30
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


def probe_slide(path: Path, timeout_s: float = 60.0, *, mpp: float | None = None) -> SlideFacts:
    """Open `path` in a child process with bounded memory and time. Raises BadInput."""
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
    answer["levels"] = [tuple(level) for level in answer["levels"]]  # type: ignore[attr-defined]
    return SlideFacts(**answer)  # type: ignore[arg-type]


def _look(path: Path, mpp: float | None) -> dict[str, object]:
    from jobs.imaging.slide import open_slide

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        with open_slide(path, mpp=mpp) as slide:
            last = slide.levels[-1]
            slide.read(last.index, 0, 0, (min(64, last.width), min(64, last.height)))
            facts = SlideFacts(
                width=slide.width,
                height=slide.height,
                levels=[(level.width, level.height) for level in slide.levels],
                mpp=slide.mpp,
                mpp_source=slide.mpp_source,
                vendor=slide.vendor,
                objective=slide.objective,
                bounds=slide.bounds,
            )
    except BadInput as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": f"{path.name} needs more than 4 GB just to be opened: it is damaged."}
    return asdict(facts)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_look(Path(sys.argv[1]), json.loads(sys.argv[2]))))
