"""Every result file of a `cell_segmentation` job but the manifest, in one pass over its blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from jobs.imaging.cells import Cells, Schema
from jobs.imaging.export.batch import Batch, Numbered, gathered
from jobs.imaging.export.chunks import Chunks
from jobs.imaging.export.document import Document
from jobs.imaging.export.frame import Frame
from jobs.imaging.export.geojson import Detections
from jobs.imaging.export.geoparquet import GeoParquet
from jobs.imaging.export.labels import Labels
from jobs.imaging.export.lines import Lines
from jobs.imaging.export.overlay import Overlay
from jobs.imaging.export.places import Places
from jobs.imaging.export.soundness import sound
from jobs.imaging.export.staging import Staging
from jobs.imaging.export.table import Table
from jobs.imaging.export.writing import Picture, Stream

TOGETHER = 4096
"""Cells from which on blocks are handed to the writers: small blocks cost calls."""

Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Names:
    """What is told in the files, or is their name.

    lines, document   names of the JSONL and of the published document
    image             the slide's file name, for the table
    tiles, method     as the published document tells them
    """

    lines: str
    document: str
    image: str
    tiles: int
    method: str


class Exports:
    """All files being written. `add` gets the blocks in grid order; `close` completes the files.

    told   cells and nuclei that were repaired or dropped, by what was done; for the manifest
    """

    def __init__(
        self,
        streams: list[Stream],
        pictures: list[Picture],
        places: Places,
        result_key: str,
        pool: Executor,
    ) -> None:
        self.told: Counter[str] = Counter()
        self._streams, self._pictures, self._places = streams, pictures, places
        self._result_key, self._pool = result_key, pool
        self._waiting: list[Numbered] = []
        self._running: list[Future[None]] = []

    def add(self, cells: Cells, first: int) -> None:
        """Append one block; `first` is the rank of its first cell."""
        if len(cells):
            self._waiting.append((cells, first))
        if sum(len(block) for block, _ in self._waiting) >= TOGETHER:
            self._hand_over()

    def close(self, tick: Tick = lambda _done, _total: None) -> None:
        """Write what waits, and the files that need every cell; `tick` hears of their steps."""
        if self._waiting:
            self._hand_over()
        self._settle()
        for stream in self._streams:
            stream.close()
        self._places.complete()
        total = sum(picture.steps for picture in self._pictures)
        done = 0

        def step() -> None:
            nonlocal done
            done += 1
            tick(done, total)

        for picture in self._pictures:
            picture.write(self._pool, step)

    def _hand_over(self) -> None:
        """Give the waiting blocks to every writer, when it has done with those before."""
        batch, told = sound(gathered(self._waiting, self._result_key))
        self._waiting = []
        self.told += told
        self._settle()
        each: list[Callable[[Batch], None]] = [stream.add for stream in self._streams]
        self._running = [self._pool.submit(add, batch) for add in [*each, self._places.add]]

    def _settle(self) -> None:
        running, self._running = self._running, []
        for future in running:
            future.result()


@contextmanager
def exports(
    stage: Staging,
    *,
    names: Names,
    schema: Schema,
    frame: Frame,
    result_key: str,
    threads: int,
) -> Iterator[Exports]:
    """Every file of a job in `stage`, open for its blocks.

    threads   that format and compress; files do not depend on it
    """
    with ExitStack() as open_now:

        def opened(name: str, kind: str) -> BinaryIO:
            return open_now.enter_context(stage.file(name, kind).open("wb"))

        places = Places(stage.folder / ".places")
        open_now.callback(places.close)
        streams: list[Stream] = [
            Detections(opened("cells.geojson.gz", "geojson"), schema=schema, frame=frame),
            Lines(opened(names.lines, "cells_jsonl"), pixel_size=frame.pixel_size),
            Document(
                opened(names.document, "segmentation"), tiles=names.tiles, method=names.method
            ),
            GeoParquet(stage.file("cells.parquet", "parquet"), schema=schema, frame=frame),
            Table(opened("cells.csv", "csv"), schema=schema, frame=frame, image=names.image),
        ]
        nuclei = schema.object_type == "cell"
        pictures: list[Picture] = [
            Chunks(stage.file("chunks.bin", "chunks"), places),
            Overlay(stage.file("overlay.bin", "overlay"), places, frame),
            Labels(stage.file("labels.ome.tiff", "labels"), places, frame, nuclei=nuclei),
        ]
        pool = ThreadPoolExecutor(threads, "export")
        open_now.callback(pool.shutdown, cancel_futures=True)
        yield Exports(streams, pictures, places, result_key, pool)
