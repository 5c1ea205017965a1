"""`python -m jobs.imaging SLIDE --out DIR`: tissue and cells of one slide, without the server.

Finished blocks are kept in DIR until the results are there: the same command again goes on from them.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jobs.imaging.blocks import FolderStore
from jobs.imaging.contract import PIPELINE_VERSION, BadInput, CellRequest, Outcome, TissueRequest
from jobs.imaging.export.manifest import sha256
from jobs.imaging.pipeline import find_tissue, segment_cells
from jobs.imaging.weights import MissingWeights, Weights, find_weights

CACHE = Path(__file__).resolve().parents[2] / "var" / "cache"
BLOCKS = ".blocks"


def main(arguments: list[str] | None = None) -> int:
    """Run both jobs and name the files; 1 with a sentence where that cannot be done."""
    options = _options(arguments)
    try:
        weights = find_weights(options.cache, explicit=options.model)
        with _bar() as bar:
            outcomes = _run(options, weights, bar)
    except (BadInput, MissingWeights) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{_sentence(error, options)}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("Stopped. The same command goes on from the blocks that are finished.\n")
        return 130
    for outcome in outcomes:
        for artifact in outcome.artifacts:
            sys.stdout.write(f"{artifact.path}\n")
    told = outcomes[-1].summary
    sys.stdout.write(
        f"{told['cells']} {told['objects']} on {told['tissue_mm2']} mm² of tissue, "
        f"{told['cells_per_mm2']} a mm², median area {told['median_area_um2']} µm²\n"
    )
    if told.get("gaps"):
        sys.stdout.write(f"{told['gaps_mm2']} mm² could not be read: manifest.json says where\n")
    return 0


def _sentence(error: OSError, options: argparse.Namespace) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"No space is left for the results in {options.out}: free some there, or give another "
            "folder. The same command goes on from the blocks that are finished."
        )
    return f"{error.filename or options.out}: {error.strerror}. Check that path and who may use it."


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.imaging", description=__doc__)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="a folder for the results")
    parser.add_argument("--mpp", type=float, help="µm per pixel of the full-resolution image")
    parser.add_argument("--model", type=Path, help="an InstanSeg TorchScript file")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where set-up put the weights")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    parser.add_argument(
        "--tile-size", type=int, help="pixels a side of what the model sees at once"
    )
    parser.add_argument("--min-area", type=float, default=0.0, help="leave out smaller cells (µm²)")
    parser.add_argument(
        "--roi",
        action="append",
        type=_box,
        metavar="X,Y,WIDTH,HEIGHT",
        help="only this part, in pixels of the full-resolution image; may be given again",
    )
    parser.add_argument("--no-tissue", action="store_true", help="compute the background too")
    return parser.parse_args(arguments)


def _box(text: str) -> list[float]:
    try:
        x, y, width, height = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text} is no box: give X,Y,WIDTH,HEIGHT, as in --roi 0,0,1000,800"
        ) from None
    return [x, y, width, height]


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description:>16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )


def _run(options: argparse.Namespace, weights: Weights, bar: Progress) -> list[Outcome]:
    if not options.slide.is_file():
        raise BadInput(f"There is no slide {options.slide.name}: check the path.")
    params = _params(options)
    digest = sha256(options.slide)
    key = _key(digest, weights, params)
    watch = _Watch(bar)
    tissue = TissueRequest(options.slide, options.out, key, key, {"mpp": options.mpp})
    cells = CellRequest(
        slide=options.slide,
        out_dir=options.out,
        model=weights.path,
        model_source=weights.source,
        model_name=weights.name,
        model_version=weights.version,
        workflow_uuid=key,
        job_uuid=key,
        job_key="cells",
        result_key=key,
        tissue_mask=None if options.no_tissue else options.out / f"{key}_tissue_mask.png",
        tissue_json=None if options.no_tissue else options.out / "tissue.json",
        slide_sha256=digest,
        blocks=FolderStore(options.out / BLOCKS),
        params=params,
    )
    outcomes = []
    if not options.no_tissue:
        outcomes.append(find_tissue(tissue, report=watch.of("tissue")))
    outcomes.append(segment_cells(cells, report=watch.of("cells")))
    shutil.rmtree(options.out / BLOCKS, ignore_errors=True)
    return outcomes


def _params(options: argparse.Namespace) -> dict[str, Any]:
    given = {
        "mpp": options.mpp,
        "precision": options.precision,
        "tissue": not options.no_tissue,
        "tile_size": options.tile_size,
        "min_area_um2": options.min_area,
        "roi": options.roi,
    }
    return {name: value for name, value in given.items() if value is not None}


def _key(digest: str, weights: Weights, params: dict[str, Any]) -> str:
    """What the result is a function of, so that ids and blocks of equal commands are equal."""
    content = json.dumps([digest, weights.sha256, params, PIPELINE_VERSION], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


class _Watch:
    """Turns reports into bars: one a phase, as it begins."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar

    def of(self, job: str) -> Any:
        tasks: dict[str, Any] = {}

        def report(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = self._bar.add_task(f"{job}: {phase}", total=total)
            self._bar.update(tasks[phase], completed=done, total=total)

        return report


if __name__ == "__main__":
    sys.exit(main())
