"""Seconds and nuclei on the sample slide: our pipeline, and InstanSeg's own `eval_whole_slide_image`.

Each side runs in a process of its own, one after the other, with the same weights and on the same
number of CPUs with as many threads. Model loading and one warm-up tile are left out on both sides. Ours writes every result
file; InstanSeg writes its label image and, to its advantage, no GeoJSON. `cpu_seconds` are those of
the process with all its threads and children. `ratio_to_instanseg` is InstanSeg's CPU-seconds divided
by the row's own: 4 means a quarter of the work.

    python bench/pipeline.py --json           one run of each
    python bench/pipeline.py --json --full    three interleaved runs of each, the median; and fp32
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

Row = dict[str, Any]
PEERS = ("labsched", "instanseg_wsi")


def main() -> int:
    """Print one line a result; 1 where ours takes more than the target share of CPU-seconds."""
    options = _options()
    if options.child:
        json.dump(_child(options), sys.stdout)
        return 0
    rows = _measured(options)
    reference = next(row["cpu_seconds"] for row in rows if row["peer"] == "instanseg_wsi")
    for row in rows:
        row["ratio_to_instanseg"] = round(reference / row["cpu_seconds"], 2)
        sys.stdout.write((json.dumps(row) if options.json else _sentence(row)) + "\n")
    target = 4.0 if "amx_bf16" in rows[0]["cpu_flags"] else 3.0
    return 0 if rows[0]["ratio_to_instanseg"] >= target else 1


def _options() -> argparse.Namespace:
    cache = Path(os.environ.get("LABSCHED_CACHE") or ROOT / "var" / "cache")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="JSON lines instead of sentences")
    parser.add_argument("--full", action="store_true", help="three runs of each, and fp32")
    parser.add_argument("--slide", type=Path, default=cache / "slides" / "CMU-1-Small-Region.svs")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--cache", type=Path, default=cache)
    parser.add_argument("--child", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="auto", help=argparse.SUPPRESS)
    return parser.parse_args()


def _measured(options: argparse.Namespace) -> list[Row]:
    runs: dict[tuple[str, str], list[Row]] = {}
    wanted = [("labsched", "auto"), ("instanseg_wsi", "fp32")]
    if options.full:
        wanted = [*wanted * 3, ("labsched", "fp32")]
    for peer, precision in wanted:
        runs.setdefault((peer, precision), []).append(_run(options, peer, precision))
    return [_median(rows) for rows in runs.values()]


def _median(rows: list[Row]) -> Row:
    """The row in the middle by CPU-seconds, and how many there were."""
    middle = statistics.median_low(row["cpu_seconds"] for row in rows)
    return next(row for row in rows if row["cpu_seconds"] == middle) | {"runs": len(rows)}


def _run(options: argparse.Namespace, peer: str, precision: str) -> Row:
    command = [sys.executable, __file__, "--child", peer, "--precision", precision]
    command += ["--slide", str(options.slide), "--cache", str(options.cache)]
    command += ["--threads", str(options.threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    child = subprocess.run(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True
    )
    row: Row = json.loads(child.stdout.splitlines()[-1])  # libraries may print before it
    return row


def _child(options: argparse.Namespace) -> Row:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    from jobs.imaging import network
    from jobs.imaging.slide import open_slide
    from jobs.imaging.weights import find_weights

    found = find_weights(options.cache)
    prepare = {"labsched": _labsched, "instanseg_wsi": _instanseg}[options.child]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        run = prepare(options, found.path, Path(folder))
        before, started = _cpu_seconds(), time.perf_counter()
        counts = run()
        seconds, used = time.perf_counter() - started, _cpu_seconds() - before
        counts |= {} if "cells" in counts else {"cells": counts.pop("count")()}
    with open_slide(options.slide) as slide:
        mpix = slide.width * slide.height / 1e6
    return {
        "bench": "pipeline",
        "peer": options.child,
        "device": network.describe_device()["device"],
        "precision": counts.pop("precision"),
        "cpu_flags": network.describe_device()["cpu_flags"],
        "threads": options.threads,
        "slide": options.slide.name,
        "model_sha256": found.sha256,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used, 2),
        **counts,
        "mpix_per_s": round(mpix / seconds, 3),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "excluded": "imports, model load, one warm-up tile",
    }


def _labsched(options: argparse.Namespace, model: Path, folder: Path) -> Callable[[], Row]:
    from jobs.imaging import network
    from jobs.imaging.contract import CellRequest
    from jobs.imaging.pipeline import segment_cells

    network.warm(model)
    request = CellRequest(
        slide=options.slide,
        out_dir=folder / "results",
        model=model,
        workflow_uuid="bench",
        job_uuid="bench",
        job_key="cells",
        result_key="bench",
        params={"precision": options.precision},
    )

    def run() -> Row:
        told = segment_cells(request, report=lambda _phase, _done, _total: None).summary
        return {name: told[name] for name in ("cells", "tiles", "precision")}

    return run


def _instanseg(options: argparse.Namespace, model: Path, folder: Path) -> Callable[[], Row]:
    """Unmodified, with its own tile size; it writes beside the slide, so that is a copy."""
    warnings.simplefilter("ignore")
    import torch
    import zarr
    from instanseg import InstanSeg
    from instanseg.utils.tiling import _chops

    torch.set_num_threads(options.threads)
    slide = Path(shutil.copy(options.slide, folder))
    script = torch.jit.load(str(model), map_location="cpu")
    peer = InstanSeg(script, device="cpu", image_reader="tiffslide", verbosity=0)
    for _ in range(2):  # TorchScript optimises itself in its first two calls
        peer.eval_small_image(torch.rand(3, 512, 512) * 255, pixel_size=0.5)

    def run() -> Row:
        peer.eval_whole_slide_image(str(slide))
        canvas = folder / f"{slide.stem}_instanseg_prediction.zarr"

        def count() -> int:
            import numpy as np

            return len(np.unique(np.asarray(zarr.open(str(canvas), mode="r")))) - 1

        shape = zarr.open(str(canvas), mode="r").shape[-2:]
        rows, columns = _chops(shape, (512, 512), overlap=200)
        return {"count": count, "tiles": len(rows) * len(columns), "precision": "fp32"}

    return run


def _cpu_seconds() -> float:
    own, children = (resource.getrusage(who) for who in (0, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _sentence(row: Row) -> str:
    return (
        f"{row['peer']:>14} {row['precision']}: {row['cells']} nuclei, {row['seconds']} s, "
        f"{row['cpu_seconds']} CPU-s, {row['peak_rss_mb']} MB, "
        f"{row['ratio_to_instanseg']}x fewer CPU-seconds than InstanSeg"
    )


if __name__ == "__main__":
    sys.exit(main())
