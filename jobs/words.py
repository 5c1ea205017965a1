"""What pages call states, reasons, phases and files: words for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STATES = {
    "PENDING": "Waiting",
    "QUEUED": "Starting",
    "RUNNING": "Running",
    "SUCCEEDED": "Done",
    "FAILED": "Failed",
    "CANCELLED": "Cancelled",
}
# where the reason says more than the state
STATES_BY_REASON = {
    ("SUCCEEDED", "gaps"): "Done with gaps",
    ("SUCCEEDED", "reused"): "Done, reused",
    ("RUNNING", "cancelling"): "Cancelling",
    ("PENDING", "retry_wait"): "Trying again",
}
LATE_PHASES = frozenset({"merge", "measure", "export"})

WAITS = {
    "branch": "Waits for the job before it in its branch.",
    "dependency": "Waits for a job it depends on.",
    "user_limit": "Waits for its turn: as many users as allowed are active.",
    "worker_limit": "Next in line: waits for a free worker.",
    "no_worker": "No live worker serves its queue. Ask an operator to start one.",
    "retry_wait": "The last attempt failed; the next one starts after a pause.",
    "paused": "Paused by an operator.",
    "maintenance": "Waits until maintenance is over.",
    "withdrawn": "Handed back by its worker; it starts again at no cost.",
    "lost": "Its worker was lost; it starts again.",
}
ENDS = {
    "reused": "An equal job of yours had this result already.",
    "gaps": "Some tiles could not be read; the cells around them are flagged.",
    "cancelling": "Stops at its next step.",
    "cancelled_by_user": "Cancelled by a person.",
    "upstream_failed": "Not run: a job it depends on did not succeed.",
    "branch_halted": "Not run: an earlier job of its branch failed, and the workflow says to halt.",
    "error": "An error stopped it.",
    "stalled": "It made no progress for too long and was stopped.",
    "timeout": "It ran longer than it may.",
    "out_of_memory": "It needed more memory than there is, even with the smallest batch.",
    "lost": "Its worker was lost too often.",
    "bad_input": "The slide or its parameters can not be used.",
}
NEXT_STEPS = {
    "error": "Retry it; if it fails again, tell an operator the job's id.",
    "stalled": "Retry it; if it stalls again, tell an operator the job's id.",
    "timeout": "Raise params.timeout_s or choose a smaller region, then submit it again.",
    "out_of_memory": "Ask an operator for a worker with more memory, then retry it.",
    "lost": "Ask an operator to look at the workers, then retry it.",
    "bad_input": "Mend the slide or the parameters and submit a new workflow.",
    "gaps": "Retry it once the slide can be read: only the places with gaps are computed again.",
    "upstream_failed": "Retry the job that failed: this one follows by itself.",
    "branch_halted": "Retry the job that failed: this one follows by itself.",
    "cancelled_by_user": "Retry it if you want the result after all.",
}
PHASES = {
    "open": "Opening the slide",
    "tissue": "Finding tissue",
    "segment": "Segmenting cells",
    "merge": "Merging tiles",
    "measure": "Measuring cells",
    "export": "Writing results",
}
TYPES = {
    "tissue_mask": "Tissue mask",
    "cell_segmentation": "Cell segmentation",
    "probe": "Probe",
}
# kind of artifact: short name, what it is and what opens it
FILES = {
    "geojson": ("QuPath", "Detections with measurements, gzipped GeoJSON: drag it into QuPath."),
    "cells_jsonl": ("JSONL", "One cell a line: for scripts and notebooks."),
    "segmentation": ("JSON", "All cells in one document, polygons as [y, x] in level-0 pixels."),
    "parquet": ("Parquet", "A row a cell with its outline: GeoParquet, for pandas and AnnData."),
    "csv": ("CSV", "A row a cell under QuPath's headings: for spreadsheets."),
    "labels": ("Labels", "The cells as numbers in a pyramidal OME-TIFF."),
    "chunks": ("Outlines", "What the viewer draws near: outlines by 2,048-pixel squares."),
    "overlay": ("Overlay", "What the viewer draws from afar: a pyramid of transparent tiles."),
    "tissue_mask": ("Mask PNG", "255 is tissue, 0 is glass."),
    "tissue_geojson": ("Outline", "The outlines of the tissue as GeoJSON."),
    "tissue_json": ("Area JSON", "Area, fraction, threshold and method."),
    "tissue_qc": ("Picture", "A thumbnail with the outlines, to check by eye."),
    "manifest": ("Manifest", "Model, parameters, versions, timings and hashes of this result."),
}
FIGURES = (
    ("cells", "cells", "{:,.0f}"),
    ("tissue_mm2", "mm² of tissue", "{:,.2f}"),
    ("tissue_fraction", "of the slide", "{:.0%}"),
    ("cells_per_mm2", "cells per mm²", "{:,.0f}"),
    ("median_area_um2", "µm² median area", "{:,.1f}"),
)
IN_ROWS = (
    "geojson",
    "parquet",
    "csv",
    "cells_jsonl",
    "segmentation",
    "tissue_mask",
    "tissue_geojson",
)


def state(public: str, reason: str, phase: str = "") -> str:
    """The word for a job's state."""
    if (word := STATES_BY_REASON.get((public, reason))) is not None:
        return word
    if public == "RUNNING" and phase in LATE_PHASES:
        return "Finishing"
    return STATES.get(public, public.capitalize())


def job_type(name: str) -> str:
    return TYPES.get(name, name.replace("_", " ").capitalize())


def phase(name: str) -> str:
    return PHASES.get(name, name.replace("_", " ").capitalize())


def doing(phase_name: str, tiles_done: int, tiles_total: int) -> str:
    """What a running job does now, with its tiles where it counts some."""
    if not phase_name:
        return ""
    tiles = f" · {tiles_done:,} of {tiles_total:,} tiles" if tiles_total else ""
    return f"{phase(phase_name)}{tiles}"


def result(summary: Mapping[str, Any]) -> str:
    """What a finished job found, in a line: "1,522 cells · 0.63 mm² of tissue"."""
    return " · ".join(f"{number} {word}" for number, word in figures(summary)[:2])


def figures(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The counts of a result as (number, what it counts)."""
    return [
        (pattern.format(summary[name]).replace("%", " %"), word)
        for name, word, pattern in FIGURES
        if isinstance(summary.get(name), int | float)
    ]


def span(seconds: float) -> str:
    """A duration, with two units at most."""
    if seconds < 0.95:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def age(seconds: float) -> str:
    """How long ago something was, in one rounded unit."""
    if seconds < 60:
        return "just now"
    units = ((86_400, "day"), (3_600, "hour"), (60, "minute"))
    size, unit = next(each for each in units if seconds >= each[0])
    number = int(seconds // size)
    return f"{number} {unit}{'' if number == 1 else 's'} ago"
