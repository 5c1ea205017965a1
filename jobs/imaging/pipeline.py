"""The two jobs of the imaging library; importing this loads neither torch nor OpenSlide.

Both report as they go and are stopped by what the report raises. Files appear under their names only
when all are complete. Nothing found is a result: an empty one.
"""

from __future__ import annotations

from pathlib import Path

from jobs.imaging.contract import CellRequest, Outcome, Report, TissueRequest


def find_tissue(request: TissueRequest, *, report: Report) -> Outcome:
    """Write mask, outlines, facts and a picture of a slide's tissue. Raises BadInput."""
    from jobs.imaging import tissue_job

    return tissue_job.find_tissue(request, report=report)


def segment_cells(request: CellRequest, *, report: Report) -> Outcome:
    """Segment every nucleus on a slide's tissue and write the result files. Raises BadInput."""
    from jobs.imaging import cell_job  # torch loads here, on GPU workers only

    return cell_job.segment_cells(request, report=report)


def help_with_blocks(request: CellRequest, *, report: Report, shard: int) -> None:
    """Compute blocks of a job that another worker runs, until none is left; writes no artifact.

    shard   1 and up: where on the slide to begin. Raises BadInput.
    """
    from jobs.imaging import cell_job

    cell_job.help_with_blocks(request, report=report, shard=shard)


def warm(model: Path) -> None:
    """Load the model and run everything once, so that the next job starts at full speed.

    Raises BadInput where the file is no InstanSeg model.
    """
    from jobs.imaging import network
    from jobs.imaging.export import warming

    network.warm(model)
    warming.warm()
