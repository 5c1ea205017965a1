"""The peers of bench/pipeline.py, each prepared and timed in a process of its own."""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Timed = Callable[[], Row]


def run_child(options: argparse.Namespace) -> Row:
    """The row of one peer, but for ratios."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    from jobs.imaging import network
    from jobs.imaging.slide import open_slide
    from jobs.imaging.weights import find_weights

    found = find_weights(options.cache)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        run = PREPARE[options.child](options, found.path, Path(folder))
        before, started = _cpu_seconds(), time.perf_counter()
        counts = run()
        seconds, used = time.perf_counter() - started, _cpu_seconds() - before
        counts |= {} if "cells" in counts else {"cells": counts.pop("count")()}
    with open_slide(options.slide) as slide:
        mpix = slide.width * slide.height / 1e6
        mm2 = mpix * slide.mpp[0] * slide.mpp[1] if slide.mpp else 0.0
    return {
        "bench": "pipeline",
        "peer": options.child,
        "device": network.describe_device()["device"],
        "precision": counts.pop("precision"),
        "cpu_flags": network.describe_device()["cpu_flags"],
        "threads": options.threads,
        "slide": options.slide.name,
        "slide_mm2": round(mm2, 4),
        "model_sha256": found.sha256,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used, 2),
        **counts,
        "mpix_per_s": round(mpix / seconds, 3),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "excluded": "imports, model load, one warm-up tile",
    }


def write_mosaic(slide: Path, path: Path, side: int) -> Path:
    """A tiled TIFF of `side` × `side` copies of a slide's full resolution, never whole in memory."""
    import numpy as np
    import tifffile

    from jobs.imaging.slide import open_slide

    with open_slide(slide) as opened:
        width, height = opened.width // 256 * 256, opened.height // 256 * 256
        pixels = opened.read(0, 0, 0, (width, height))
        mpp = opened.mpp or (0.5, 0.5)

    def tiles() -> Any:
        for y in range(0, side * height, 256):
            for x in range(0, side * width, 256):
                top, left = y % height, x % width
                yield np.ascontiguousarray(pixels[top : top + 256, left : left + 256])

    tifffile.imwrite(
        path,
        tiles(),
        shape=(side * height, side * width, 3),
        dtype=np.uint8,
        tile=(256, 256),
        photometric="rgb",
        resolution=(1e4 / mpp[0], 1e4 / mpp[1]),
        resolutionunit="CENTIMETER",
        metadata=None,
    )
    return path


# --- ours -------------------------------------------------------------------------------------


def _request(options: argparse.Namespace, model: Path, folder: Path) -> Any:
    from jobs.imaging.contract import CellRequest

    params: Row = {"precision": options.precision}
    if options.tile_size:
        params["tile_size"] = options.tile_size
    return CellRequest(
        slide=options.slide,
        out_dir=folder / "results",
        model=model,
        workflow_uuid="bench",
        job_uuid="bench",
        job_key="cells",
        result_key="bench",
        params=params,
    )


def _labsched(options: argparse.Namespace, model: Path, folder: Path) -> Timed:
    from jobs.imaging.pipeline import segment_cells, warm

    warm(model)
    request = _request(options, model, folder)

    def run() -> Row:
        network = NetworkThreads()
        before = _cpu_seconds()
        told = segment_cells(request, report=lambda _phase, _done, _total: None).summary
        besides = _cpu_seconds() - before - network.cpu_seconds()
        counts = {name: told[name] for name in ("cells", "tiles", "precision", "tissue_mm2")}
        return counts | {"cpu_seconds_besides_network": round(besides, 2)}

    return run


def _floor(options: argparse.Namespace, model: Path, folder: Path) -> Timed:
    """The windows of our plan, read and normalised before the clock starts."""
    import numpy as np
    import torch

    from jobs.imaging import network
    from jobs.imaging.cell_job import bench_of
    from jobs.imaging.progress import Progress
    from jobs.imaging.segmentation import wanted

    network.warm(model)
    torch.set_num_threads(options.threads)
    singles = []
    with bench_of(_request(options, model, folder), Progress(lambda *_: None)) as bench:
        grid, plan = bench.plan.grid, bench.plan
        blocks = [block for row in grid.rows() for block in row]
        windows = {one.index: one for block in blocks for one in grid.windows(block)}
        kind = network.DTYPES[plan.precision]
        for window in windows.values():
            inside = window.area.clipped(grid.plane)
            missing = window.area.height - inside.height, window.area.width - inside.width
            pixels = np.pad(
                plan.plane.read(*inside), ((0, missing[0]), (0, missing[1]), (0, 0)), mode="reflect"
            )
            tile = network.normalised(pixels, plan.scale).to(plan.network.device, kind)
            tile = tile.contiguous(memory_format=torch.channels_last)
            singles.append((tile, None if grid.whole else wanted(window)))
        net, precision = plan.network.eager(plan.precision), plan.precision
        batches = singles
        if grid.whole:  # a GPU takes whole tiles, several at once
            tiles = [tile for tile, _ in singles]
            groups = [tiles[at : at + plan.batch] for at in range(0, len(tiles), plan.batch)]
            batches = [(torch.cat(group), None) for group in groups]

    def run() -> Row:
        with torch.inference_mode():
            for batch, keep in batches:
                net(batch, keep)
            if batches and batches[0][0].is_cuda:
                torch.cuda.synchronize()
        return {"cells": 0, "tiles": len(singles), "precision": precision}

    return run


# --- InstanSeg's own --------------------------------------------------------------------------


def _instanseg(options: argparse.Namespace, model: Path) -> Any:
    """Unmodified, on the device it would choose, after the calls in which TorchScript optimises."""
    warnings.simplefilter("ignore")
    import torch
    from instanseg import InstanSeg

    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    script = torch.jit.load(str(model), map_location=device)
    peer = InstanSeg(script, device=device, image_reader="tiffslide", verbosity=0)
    for _ in range(2):
        peer.eval_small_image(torch.rand(3, 512, 512) * 255, pixel_size=0.5)
    return peer


def _instanseg_wsi(options: argparse.Namespace, model: Path, folder: Path) -> Timed:
    """With its own tile size; it writes beside the slide, so that is a copy."""
    import zarr
    from instanseg.utils.tiling import _chops

    slide = Path(shutil.copy(options.slide, folder))
    peer = _instanseg(options, model)

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


def _instanseg_medium(options: argparse.Namespace, model: Path, _folder: Path) -> Timed:
    """The whole slide as one array, read before the clock starts, in its own tiles of 512."""
    from instanseg.utils.tiling import _chops

    from jobs.imaging.slide import open_slide

    with open_slide(options.slide) as slide:
        image = slide.read(0, 0, 0, (slide.width, slide.height))
        mpp = slide.mpp[0] if slide.mpp else 0.5
    peer = _instanseg(options, model)

    def run() -> Row:
        labels = peer.eval_medium_image(image, pixel_size=mpp, return_image_tensor=False)

        def count() -> int:
            import numpy as np

            return len(np.unique(np.asarray(labels))) - 1

        rows, columns = _chops(image.shape[:2], (512, 512), overlap=200)
        return {"count": count, "tiles": len(rows) * len(columns), "precision": "fp32"}

    return run


class NetworkThreads:
    """The threads of a warm process that stay: the network's own and OpenMP's. A job starts its
    readers and finishers anew and ends them, and its main thread runs no layer."""

    def __init__(self) -> None:
        self.before = {task: _task_seconds(task) for task in _tasks()}

    def cpu_seconds(self) -> float:
        """What those that are still there used since."""
        still = _tasks() & self.before.keys()
        return sum(_task_seconds(task) - self.before[task] for task in still)


def _tasks() -> set[str]:
    return set(os.listdir("/proc/self/task")) - {str(os.getpid())}


def _task_seconds(task: str) -> float:
    return int(Path(f"/proc/self/task/{task}/schedstat").read_text().split()[0]) / 1e9


def _cpu_seconds() -> float:
    own, children = (resource.getrusage(who) for who in (0, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


PREPARE = {
    "labsched": _labsched,
    "network_floor": _floor,
    "instanseg_wsi": _instanseg_wsi,
    "instanseg_medium": _instanseg_medium,
}
PEERS = tuple(PREPARE)
