"""Seconds, memory and nuclei on the sample slide: our pipeline, InstanSeg's own, and the bare network.

Each peer runs in a process of its own, one after the other, with the same weights, on the same CPUs
with as many threads. Imports, model loading and one warm-up tile are left out on all sides.

    labsched           the whole job: tissue, segmentation, merge, measurements, every result file
    instanseg_wsi      InstanSeg's `eval_whole_slide_image` (tiffslide), unmodified: its label image,
                       and to its advantage no GeoJSON
    instanseg_medium   InstanSeg's `eval_medium_image` on the whole slide as one array: labels only
    network_floor      the bare network of `labsched` over the same tissue tiles, already in memory
                       and normalised: no reading, no post-processing

`cpu_seconds` are those of the process with all its threads and children. `ratio_to_instanseg` is the
CPU-seconds of `instanseg_wsi` divided by the row's own, `ratio_to_floor` the row's own divided by the
floor's; `wall_…` the same of wall seconds. A result line of its own tells what ours costs besides the
network, a mm² of the slide.

    python bench/pipeline.py --json           one run of each
    python bench/pipeline.py --json --full    three interleaved runs of each, the median; fp32; and the
                                              memory at 16 times the pixels
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.pipeline_peers import PEERS, run_child, write_mosaic  # noqa: E402

Row = dict[str, Any]
Run = tuple[str, str]  # peer, precision

LEAST = {"amx": (6.0, 6.0), "other": (2.5, 2.5), "gpu": (0.0, 12.0)}
"""CPU-seconds and wall seconds of InstanSeg's whole-slide path to ours: on a CPU with and without AMX
bf16, on a GPU."""
MOST_OF_FLOOR = {"cpu": ("ratio_to_floor", 1.25), "gpu": ("wall_ratio_to_floor", 1.3)}
LEAST_TISSUE_MM2_PER_S = 5.0  # on a GPU
MOST_BESIDES = 1.0  # core-seconds a mm² of slide
MOST_RSS_MB = 2048
MOST_GROWTH = 1.2
MOSAIC = 4


def main() -> int:
    """Print one line a result; 1 where a bound is missed."""
    options = _options()
    if options.child:
        json.dump(run_child(options), sys.stdout)
        return 0
    rows = _measured(options)
    _add_ratios(rows)
    ours = rows[0]
    lines = [*rows, _besides(ours, _of(rows, "network_floor"))]
    if options.full:
        lines.append(_growth(options, ours))
    for row in lines:
        sys.stdout.write((json.dumps(row) if options.json else _sentence(row)) + "\n")
    missed = _missed(rows, lines)
    for name in missed:
        sys.stderr.write(f"missed: {name}\n")
    return 1 if missed else 0


def _options() -> argparse.Namespace:
    cache = Path(os.environ.get("LABSCHED_CACHE") or ROOT / "var" / "cache")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="JSON lines instead of sentences")
    parser.add_argument("--full", action="store_true", help="three runs of each, fp32, and memory")
    parser.add_argument("--slide", type=Path, default=cache / "slides" / "CMU-1-Small-Region.svs")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--cache", type=Path, default=cache)
    parser.add_argument("--tile-size", type=int, help="ours and the floor's, plane pixels")
    parser.add_argument("--only", choices=PEERS, action="append", help="these peers alone")
    parser.add_argument("--child", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="auto", help=argparse.SUPPRESS)
    return parser.parse_args()


def _measured(options: argparse.Namespace) -> list[Row]:
    """One row a peer and precision, ours first."""
    wanted: list[Run] = [
        ("labsched", "auto"),
        ("network_floor", "auto"),
        ("instanseg_wsi", "fp32"),
        ("instanseg_medium", "fp32"),
    ]
    wanted = [run for run in wanted if not options.only or run[0] in options.only]
    if options.full:
        wanted = [*wanted * 3, ("labsched", "fp32"), ("network_floor", "fp32")]
    runs: dict[Run, list[Row]] = {}
    for run in wanted:
        runs.setdefault(run, []).append(_run(options, run, options.slide))
    return [_median(rows) for rows in runs.values()]


def _median(rows: list[Row]) -> Row:
    """The row in the middle by CPU-seconds, and the figures of all."""
    middle = statistics.median_low(row["cpu_seconds"] for row in rows)
    found = next(row for row in rows if row["cpu_seconds"] == middle)
    return found | {
        "runs": len(rows),
        "cpu_seconds_of_all": [row["cpu_seconds"] for row in rows],
        "seconds_of_all": [row["seconds"] for row in rows],
    }


def _run(options: argparse.Namespace, run: Run, slide: Path) -> Row:
    peer, precision = run
    command = [sys.executable, __file__, "--child", peer, "--precision", precision]
    command += ["--slide", str(slide), "--cache", str(options.cache)]
    command += ["--threads", str(options.threads)]
    if options.tile_size:
        command += ["--tile-size", str(options.tile_size)]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    child = subprocess.run(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True
    )
    row: Row = json.loads(child.stdout.splitlines()[-1])  # libraries may print before it
    return row


def _of(rows: list[Row], peer: str) -> Row | None:
    return next((row for row in rows if row["peer"] == peer), None)


def _add_ratios(rows: list[Row]) -> None:
    reference = _of(rows, "instanseg_wsi")
    for row in rows:
        floors = sorted(
            (each for each in rows if each["peer"] == "network_floor"),
            key=lambda floor: floor["precision"] != row["precision"],  # its own precision first
        )
        for name, clock in (("", "cpu_seconds"), ("wall_", "seconds")):
            if reference is not None:
                row[f"{name}ratio_to_instanseg"] = round(reference[clock] / row[clock], 2)
            if floors:
                row[f"{name}ratio_to_floor"] = round(row[clock] / floors[0][clock], 3)


def _besides(ours: Row, floor: Row | None) -> Row:
    """What a job costs outside the network's threads: normalisation runs on them, as do the windows of
    rare large objects. What is over the floor has all of it, and the noise of two runs."""
    row: Row = {"bench": "pipeline_besides_network", "peer": "labsched"}
    if floor is None or ours["peer"] != "labsched":
        return row
    used = ours["cpu_seconds_besides_network"]
    return row | {
        "device": ours["device"],
        "slide": ours["slide"],
        "cpu_seconds": used,
        "cpu_seconds_over_floor": round(ours["cpu_seconds"] - floor["cpu_seconds"], 2),
        "slide_mm2": ours["slide_mm2"],
        "tissue_mm2": ours["tissue_mm2"],
        "core_seconds_a_mm2": round(used / ours["slide_mm2"], 2),
        "core_seconds_a_tissue_mm2": round(used / ours["tissue_mm2"], 2),
    }


def _growth(options: argparse.Namespace, ours: Row) -> Row:
    """Peak memory on a mosaic of 16 copies of the slide, beside that on one."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        mosaic = write_mosaic(options.slide, Path(folder) / "mosaic.tiff", MOSAIC)
        large = _run(options, ("labsched", "auto"), mosaic)
    return {
        **large,
        "bench": "pipeline_memory",
        "times_the_pixels": MOSAIC**2,
        "peak_rss_mb_at_one": ours["peak_rss_mb"],
        "ratio_of_peak_rss": round(large["peak_rss_mb"] / ours["peak_rss_mb"], 3),
    }


def _missed(rows: list[Row], lines: list[Row]) -> list[str]:
    """Bounds that ours does not hold; none where only peers ran."""
    ours = rows[0]
    if ours["peer"] != "labsched":
        return []
    on_gpu = ours["device"] != "cpu"
    cpu, wall = LEAST["gpu" if on_gpu else "amx" if "amx_bf16" in ours["cpu_flags"] else "other"]
    ratio, most = MOST_OF_FLOOR["gpu" if on_gpu else "cpu"]
    checks = {
        "CPU-seconds against InstanSeg": ours.get("ratio_to_instanseg", cpu) >= cpu,
        "wall seconds against InstanSeg": ours.get("wall_ratio_to_instanseg", wall) >= wall,
        "the bare network": ours.get(ratio, 0) <= most,
        "peak memory": ours["peak_rss_mb"] <= MOST_RSS_MB,
        "tissue a second": not on_gpu
        or ours["tissue_mm2"] / ours["seconds"] >= LEAST_TISSUE_MM2_PER_S,
    }
    for line in lines:
        if "core_seconds_a_mm2" in line:
            checks["cost besides the network"] = line["core_seconds_a_mm2"] <= MOST_BESIDES
        if "ratio_of_peak_rss" in line:
            checks["memory at 16 times the pixels"] = line["ratio_of_peak_rss"] <= MOST_GROWTH
    return [name for name, held in checks.items() if not held]


def _sentence(row: Row) -> str:
    if "seconds" not in row:
        return f"besides the network: {row.get('core_seconds_a_mm2')} core-seconds a mm² of slide"
    told = (
        f"{row['peer']:>16} {row['precision']}: {row['cells']} nuclei, {row['seconds']} s, "
        f"{row['cpu_seconds']} CPU-s, {row['peak_rss_mb']} MB"
    )
    if "ratio_to_instanseg" in row:
        told += f", {row['ratio_to_instanseg']}x fewer CPU-seconds than InstanSeg"
    if "ratio_to_floor" in row:
        told += f", {row['ratio_to_floor']}x the bare network"
    return told


if __name__ == "__main__":
    sys.exit(main())
