"""`python -m jobs.imaging SLIDE --out DIR`: tissue and nuclei of one slide, without the server."""

from __future__ import annotations

import argparse
import sys
import uuid
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jobs.imaging.contract import BadInput, CellRequest, Outcome, Report, TissueRequest
from jobs.imaging.pipeline import find_tissue, segment_cells
from jobs.imaging.weights import MissingWeights, Weights, find_weights

CACHE = Path(__file__).resolve().parents[2] / "var" / "cache"


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
        sys.stderr.write(
            f"The results cannot be written to {options.out} ({error.strerror}): free some space "
            "there, or give another folder.\n"
        )
        return 1
    for outcome in outcomes:
        for artifact in outcome.artifacts:
            sys.stdout.write(f"{artifact.path}\n")
    cells, tissue = outcomes[1].summary["cells"], outcomes[1].summary["tissue_mm2"]
    sys.stdout.write(f"{cells} nuclei on {tissue} mm² of tissue\n")
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.imaging", description=__doc__)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for the result files")
    parser.add_argument("--mpp", type=float, help="µm per pixel, where the slide does not say")
    parser.add_argument("--model", type=Path, help="an InstanSeg TorchScript file")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where set-up put the weights")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--no-tissue", action="store_true", help="compute the background too")
    return parser.parse_args(arguments)


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description:>16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )


def _run(options: argparse.Namespace, weights: Weights, bar: Progress) -> list[Outcome]:
    key = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{options.slide.resolve()}:{weights.sha256}"))
    tissue = TissueRequest(options.slide, options.out, key, key, {"mpp": options.mpp})
    cells = CellRequest(
        slide=options.slide,
        out_dir=options.out,
        model=weights.path,
        model_source=weights.source,
        workflow_uuid=key,
        job_uuid=key,
        job_key="cells",
        result_key=key,
        tissue_mask=None if options.no_tissue else options.out / f"{key}_tissue_mask.png",
        tissue_json=None if options.no_tissue else options.out / "tissue.json",
        params={
            "mpp": options.mpp,
            "precision": options.precision,
            "tissue": not options.no_tissue,
        },
    )
    return [
        find_tissue(tissue, report=_report(bar, "tissue")),
        segment_cells(cells, report=_report(bar, "cells")),
    ]


def _report(bar: Progress, job: str) -> Report:
    task = bar.add_task(job, total=1)

    def report(phase: str, done: int, total: int) -> None:
        bar.update(task, description=f"{job}: {phase}", completed=done, total=total)

    return report


if __name__ == "__main__":
    sys.exit(main())
