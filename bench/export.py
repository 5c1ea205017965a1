"""Seconds and memory that a million synthetic cells cost, from blocks to every result file.

Cells are nuclei with outlines along the pixel edges of a model plane at 0.5 µm, on a slide of 0.25 µm,
in blocks of 1,024 pixels as a job keeps them: some 30 corners and 16 measurements each. The blocks are
made first and lie in a folder, as when a job has finished its last one; what is timed is reading them
and writing all files, in one process on as many threads as CPUs.

    python bench/export.py --json [--cells 1000000] [--threads 2] [--keep FOLDER]

The last row tells the memory of the full run by that of a tenth of it (`rss_ratio`); both carry the
libraries, which `base_rss_mb` tells (a run of ten thousand cells).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import shapely

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from jobs.imaging.cells import Cells, Schema, decoded  # noqa: E402
from jobs.imaging.contours import outlines  # noqa: E402
from jobs.imaging.export.all import Names, exports  # noqa: E402
from jobs.imaging.export.frame import Frame  # noqa: E402
from jobs.imaging.export.staging import staging  # noqa: E402
from jobs.imaging.measurement import NAMES  # noqa: E402

BLOCK = 1024
PITCH = 28
"""Plane pixels from cell to cell: 5,100 a mm², dense tumour."""

SCALE = 2.0
KINDS = 200
"""Shapes that the cells of a block are taken from."""


def shapes(rng: np.random.Generator) -> list[np.ndarray]:
    """Rings of KINDS bent ellipses along pixel edges."""
    y, x = np.mgrid[0:PITCH, 0:PITCH]
    labels = np.zeros((PITCH * KINDS, PITCH), np.int32)
    for kind in range(KINDS):
        turn, long, flat = rng.uniform(0, math.pi), rng.uniform(6, 9), rng.uniform(0.6, 1.0)
        across, down = x - PITCH / 2, y - PITCH / 2
        u = across * math.cos(turn) + down * math.sin(turn)
        v = down * math.cos(turn) - across * math.sin(turn) + 0.02 * u**2
        inside = (u / long) ** 2 + (v / (flat * long)) ** 2 < 1
        labels[kind * PITCH : (kind + 1) * PITCH][inside] = kind + 1
    traced = outlines(labels, np.arange(1, KINDS + 1, dtype=np.int32))
    rings = np.split(traced.corners.astype(np.float64), traced.starts[1:-1])
    return [ring - [0, PITCH * kind] for kind, ring in enumerate(rings)]


def block(column: int, row: int, rings: list[np.ndarray], *, most: int) -> Cells:
    """A block full of cells, `most` at most."""
    rng = np.random.default_rng([row, column])
    first_x, first_y = -(-column * BLOCK // PITCH), -(-row * BLOCK // PITCH)
    last_x, last_y = -(-(column + 1) * BLOCK // PITCH), -(-(row + 1) * BLOCK // PITCH)
    at = np.array([(x, y) for y in range(first_y, last_y) for x in range(first_x, last_x)])
    at = at[:most] * PITCH + rng.integers(-3, 4, (min(most, len(at)), 2))
    at = np.maximum(at, 0)
    kinds = rng.integers(0, KINDS, len(at))
    chosen = [rings[kind] for kind in kinds]
    lengths = [len(ring) for ring in chosen]
    corners = (np.concatenate(chosen) + np.repeat(at, lengths, 0)) * SCALE
    values = np.round(rng.gamma(2.0, 0.4, (len(at), len(NAMES))), 4)
    values[:, 0] = [shapely.Polygon(ring).area / 4 for ring in chosen]
    centre = np.round((at + PITCH / 2 + rng.uniform(-1, 1, at.shape)) * SCALE, 2)
    return Cells(
        seeds=(at + PITCH // 2).astype(np.int32),
        corners=corners,
        starts=np.concatenate([[0], np.cumsum(lengths)]),
        area_l0=values[:, 0] * 16,
        centroid_l0=centre,
        replaced=rng.random(len(at)) < 0.01,
        values=values,
        origin_l0=np.array([column, row]) * BLOCK * SCALE,
    )


def make(folder: Path, count: int) -> int:
    """Write block files of `count` cells; returns how many blocks lie along one side."""
    rings = shapes(np.random.default_rng(4))
    side = math.ceil(math.sqrt(count) * PITCH / BLOCK)
    left = count
    for row in range(side):
        for column in range(side):
            cells = block(column, row, rings, most=left)
            (folder / f"{row:04d}_{column:04d}").write_bytes(cells.encoded())
            left -= len(cells)
            if not left:
                return side
    return side


def written(blocks: Path, out: Path, side: int, threads: int) -> Iterator[tuple[str, int]]:
    """Write all files; yields their names and sizes."""
    plane = (side * BLOCK, side * BLOCK)
    frame = Frame(
        (int(plane[0] * SCALE), int(plane[1] * SCALE)), (0.25, 0.25), plane, (SCALE, SCALE)
    )
    names = Names("J_cells.jsonl", "W_cells_segmentation.json", "bench.svs", 1, "tiled_parallel")
    schema = Schema("detection", NAMES)
    with staging(out) as stage:
        began = time.perf_counter()
        with exports(
            stage, names=names, schema=schema, frame=frame, result_key="bench", threads=threads
        ) as files:
            first = 1
            for path in sorted(blocks.iterdir()):
                cells = decoded(path.read_bytes())
                files.add(cells, first)
                first += len(cells)
            added = time.perf_counter()
            files.close()
        if os.environ.get("BENCH_TIMES"):
            print(added - began, time.perf_counter() - added, file=sys.stderr)
        for artifact in stage.publish():
            yield artifact.name, artifact.path.stat().st_size


def run(count: int, threads: int, keep: Path | None) -> dict[str, object]:
    """One run in this process, which must be fresh for its memory to mean something."""
    with tempfile.TemporaryDirectory(dir=keep) as folder:
        blocks, out = Path(folder, "blocks"), Path(folder, "out")
        blocks.mkdir()
        made = [sys.executable, __file__, "--make", str(blocks), "--cells", str(count)]
        side = int(subprocess.run(made, check=True, capture_output=True, text=True).stdout)
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        sizes = dict(written(blocks, keep or out, side, threads))
        after = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "bench": "export",
            "peer": "labsched",
            "device": "cpu",
            "cells": count,
            "threads": threads,
            "seconds": round(time.perf_counter() - began, 2),
            "cpu_seconds": round(
                after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2
            ),
            "peak_rss_mb": round(after.ru_maxrss / 1024),
            "mb": {name: round(size / 1e6, 1) for name, size in sizes.items()},
        }


def apart(count: int, threads: int) -> dict[str, object]:
    """`run` in a process of its own."""
    command = [sys.executable, __file__, "--once", "--json", "--cells", str(count)]
    command += ["--threads", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    row: dict[str, object] = json.loads(done.stdout)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="rows as JSON; else as they are")
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--keep", type=Path, help="a folder to leave the files in")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make:
        print(make(given.make, given.cells))
        return
    if given.once or given.keep:
        print(json.dumps(run(given.cells, given.threads, given.keep)))
        return
    apart(1_000, given.threads)  # compiles the inner loops, where no run did before
    peaks: list[int] = []
    for count in (10_000, given.cells // 10, given.cells):
        row = apart(count, given.threads)
        peaks.append(int(str(row["peak_rss_mb"])))
        if count == given.cells:
            row |= {"base_rss_mb": peaks[0], "rss_ratio": round(peaks[2] / peaks[1], 3)}
        print(json.dumps(row) if given.json else row, flush=True)


if __name__ == "__main__":
    main()
