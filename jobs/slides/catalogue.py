"""The slides that a tenant may use: files of its roots, their ids and what is known of them.

A file needs no row to be listed: its id follows from tenant, root and path. Facts come from a child
process, because a damaged slide can take the process that opens it down.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jobs.imaging.contract import BadInput
from jobs.imaging.probing import SlideFacts, probe_slide
from jobs.models import Slide
from jobs.slides import roots
from jobs.slides.bucket import SlideAway
from jobs.slides.roots import FileKey
from jobs.slides.staging import Held, NotStaged
from tenants.models import Tenant

SUFFIXES = (
    ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm",
    ".czi", ".qptiff",
)  # fmt: skip
PROBE_TIMEOUT_S = 20.0
LIST_PROBES_S = 1.5
"""Seconds that one page of a list may spend on opening slides nobody opened before."""
KEPT_FACTS = 10_000

Known = SlideFacts | str  # a sentence where the slide can not be opened


class NoSlide(LookupError):
    """The tenant has no slide with this id."""


class Unreadable(Exception):
    """The slide can not be opened; the message says why and what to do."""


_facts: OrderedDict[FileKey, Known] = OrderedDict()
_places: dict[tuple[str, uuid.UUID], tuple[str, str]] = {}
_lock = threading.Lock()
_probing = threading.Lock()  # one child at a time: a folder of new slides must not fill memory


def find(tenant: Tenant, wanted: uuid.UUID) -> Slide:
    """The slide with this id; its row is made when the tenant is saved. Raises NoSlide."""
    slide = _unsaved(tenant, wanted) if tenant._state.adding else roots.by_id(tenant, wanted)
    if slide is None:
        raise NoSlide(wanted)
    slide.tenant = tenant
    return slide


def _unsaved(tenant: Tenant, wanted: uuid.UUID) -> Slide | None:
    place = _places.get((tenant.key, wanted))
    if place is None:
        for root, path in roots.files_of(tenant):
            if roots.slide_id(tenant, root, path) == wanted:
                place = root, path
                if len(_places) < KEPT_FACTS:
                    _places[tenant.key, wanted] = place
                break
    return Slide(tenant=tenant, uuid=wanted, root=place[0], path=place[1]) if place else None


def listed(
    tenant: Tenant, *, after: tuple[str, str] | None, most: int
) -> tuple[list[Slide], SlideAway | None]:
    """The tenant's slides in order of root and path, those behind `after` only; and why those of the
    bucket are not among them, where they are not."""
    found, away = _places_of(tenant)
    places = sorted(
        place
        for place in found
        if place[1].lower().endswith(SUFFIXES) and (after is None or place > after)
    )[:most]
    rows = _rows(tenant, places)
    slides = [
        rows.get(place)
        or Slide(tenant=tenant, uuid=roots.slide_id(tenant, *place), root=place[0], path=place[1])
        for place in places
    ]
    return slides, away


def _places_of(tenant: Tenant) -> tuple[list[roots.Place], SlideAway | None]:
    found: list[roots.Place] = []
    try:
        found.extend(roots.files_of(tenant))  # keeps those of the folders when the bucket is away
    except SlideAway as away:
        return found, away
    return found, None


def _rows(tenant: Tenant, places: list[tuple[str, str]]) -> dict[tuple[str, str], Slide]:
    if tenant._state.adding or not places:
        return {}
    rows = Slide.objects.for_tenant(tenant).filter(path__in=[path for _, path in places])
    found = {(row.root, row.path): row for row in rows}
    for row in found.values():
        row.tenant = tenant
    return found


def probe_some(slides: Iterable[Slide]) -> None:
    """Open slides that nobody opened yet, for at most LIST_PROBES_S: a list must not take long."""
    deadline = time.monotonic() + LIST_PROBES_S
    for slide in slides:
        if time.monotonic() > deadline:
            return
        try:
            facts_of(slide)
        except (Unreadable, NoSlide, SlideAway):
            continue


def facts_of(slide: Slide) -> SlideFacts:
    """What the file says of itself, asked once a file. Raises NoSlide, Unreadable or SlideAway."""
    key = key_of(slide)
    with _lock:
        known = _facts.get(key)
    if known is None:
        with file_of(slide) as file, _probing:
            known = _facts.get(key) or _probe(file)
        with _lock:
            _facts[key] = known
            while len(_facts) > KEPT_FACTS:
                _facts.popitem(last=False)
    if slide.pk is not None and not _stored(slide, key):
        _store(slide, key, known)
    if isinstance(known, str):
        raise Unreadable(known)
    return known


def file_of(slide: Slide, *, fetch: bool = False) -> Held:
    """The file behind `slide`, checked again now. Raises NoSlide when it is gone, or SlideAway.

    fetch    of the bucket: begin to fetch what is not on this machine
    """
    try:
        return roots.opened(slide, fetch=fetch)
    except roots.BadPath as error:
        raise NoSlide(slide.uuid) from error


def key_of(slide: Slide) -> FileKey:
    """What changes when the file behind `slide` does. Raises NoSlide or SlideAway."""
    try:
        return roots.key_of(slide)
    except roots.BadPath as error:
        raise NoSlide(slide.uuid) from error


def version_of(key: FileKey) -> str:
    """A short text that changes when the file does, for addresses and validators."""
    return f"{key[1]:x}-{key[2]:x}"


def _probe(file: Path) -> Known:
    try:
        return probe_slide(file, PROBE_TIMEOUT_S)
    except BadInput as error:
        return str(error)


def _stored(slide: Slide, key: FileKey) -> bool:
    return slide.modified_at == _modified(key) and slide.size == key[2]


def _store(slide: Slide, key: FileKey, known: Known) -> None:
    """Keep the facts in the row, for lists of every process."""
    fields: dict[str, Any] = {"size": key[2], "modified_at": _modified(key), "error": ""}
    if isinstance(known, str):
        fields["error"] = known
    else:
        mpp = known.mpp or (None, None)
        fields |= {
            "vendor": known.vendor,
            "width_l0": known.width,
            "height_l0": known.height,
            "levels": len(known.levels),
            "mpp_x": mpp[0],
            "mpp_y": mpp[1],
            "mpp_source": known.mpp_source[:20],
        }
    Slide.objects.for_tenant(slide.tenant).filter(pk=slide.pk).update(**fields)
    for name, value in fields.items():
        setattr(slide, name, value)


def _modified(key: FileKey) -> dt.datetime:
    # whole microseconds: what every database keeps
    return dt.datetime.fromtimestamp(key[1] // 1000 / 1e6, tz=dt.UTC)


def shape(slide: Slide, *, probe: bool = False) -> dict[str, Any]:
    """The public shape of a slide; `probe` opens it when nobody did yet."""
    try:
        key = key_of(slide)
        known = _looked(slide, key) if probe else _facts.get(key)
    except NoSlide:
        return _shape(slide, None, "The file is no longer there: put it back, or choose another.")
    except SlideAway as error:
        return _shape(slide, None, str(error))
    if known is None and slide.pk is not None and _stored(slide, key):
        return _shape(slide, key, slide.error)
    if known is None or isinstance(known, str):
        return _shape(slide, key, known or "")
    mpp = known.mpp or (None, None)
    return _shape(slide, key, "") | {
        "vendor": known.vendor,
        "width": known.width,
        "height": known.height,
        "levels": len(known.levels),
        "mpp_x": mpp[0],
        "mpp_y": mpp[1],
        "mpp_source": known.mpp_source,
        "bounds": list(known.bounds) if known.bounds else None,
    }


def _looked(slide: Slide, key: FileKey) -> Known | None:
    """What is known of the slide after a look at it; None where it is not on this machine."""
    try:
        return facts_of(slide)  # stores them, too
    except Unreadable as error:
        return str(error)
    except NotStaged:
        return _facts.get(key)


def _shape(slide: Slide, key: FileKey | None, error: str) -> dict[str, Any]:
    address = f"/api/slides/{slide.uuid}"
    version = f"?v={version_of(key)}" if key else ""
    return {
        "id": str(slide.uuid),
        "name": Path(slide.path).name,
        "image_path": slide.path,
        "root": slide.root,
        "size": key[2] if key else slide.size,
        "vendor": slide.vendor or None,
        "width": slide.width_l0,
        "height": slide.height_l0,
        "levels": slide.levels,
        "mpp_x": slide.mpp_x,
        "mpp_y": slide.mpp_y,
        "mpp_source": slide.mpp_source or None,
        "bounds": None,
        "error": error,
        "dzi": f"{address}.dzi{version}",
        "thumbnail": f"{address}/thumbnail{version}",
    }
