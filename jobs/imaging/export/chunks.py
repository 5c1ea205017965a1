"""`chunks.bin`: the outlines of each square of 2,048 level-0 pixels, as the viewer draws them.

A chunk, once its gzip is taken off, is little-endian: `CEL1`, u32 n, u32 flags, u32 corners; then
u32 id[n], f32 centre[n][2], u8 class[n], nverts[n], steps[corners][2] (see `places`). With WIDE among
the flags nverts is u16 and a step i16, else u8 and i8; an array begins at a multiple of its item.
"""

from __future__ import annotations

import struct
from concurrent.futures import Executor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from jobs.imaging.ahead import in_order
from jobs.imaging.export.pack import Key, Pack, Packer
from jobs.imaging.export.places import CHUNK, HEAD, Places, Shapes, Square
from jobs.imaging.export.writing import GZIP, LEVEL, Step

MAGIC = b"CEL1"
HEADER = struct.Struct("<4sIII")
WIDE = 1


class Chunks:
    """The chunks of a slide, written at once when every outline is in its place."""

    def __init__(self, path: Path, places: Places) -> None:
        self._path, self._places = path, places

    @property
    def steps(self) -> int:
        """How often `write` calls `step`."""
        return len(self._places.squares())

    def write(self, pool: Executor, step: Step) -> None:
        """Write the file."""
        places = self._places
        with Packer(self._path) as packer:
            for square, chunk in in_order(pool, self._packed, places.squares(), ahead=8):
                count, box = places.count(square), places.box(square)
                packer.add(key_of(square), chunk, cells=count, box=box)
                step()
            packer.close({"chunk": CHUNK, "cells": places.cells, "encoding": "gzip"})

    def _packed(self, square: Square) -> tuple[Square, bytes]:
        return square, isal_zlib.compress(encode(self._places.read(square)), LEVEL, GZIP)


def key_of(square: Square) -> Key:
    """The key of a chunk in the file."""
    return 0, square[1], square[0]


def read_chunk(stream: BinaryIO, square: Square) -> bytes | None:
    """The chunk of a column and row of squares as it is sent (gzip); None where no cell lies.

    For many chunks of one file keep a `Pack` and use `key_of`.
    """
    pack = Pack(stream)
    return pack.read(key_of(square)) if key_of(square) in pack else None


def encode(shapes: Shapes) -> bytes:
    """A chunk, not compressed."""
    heads, steps = shapes.heads, shapes.steps
    wide = _wide(shapes)
    centres = np.column_stack([heads["x"], heads["y"]])
    return b"".join(
        [
            HEADER.pack(MAGIC, len(heads), WIDE * wide, len(steps)),
            heads["id"].tobytes(),
            centres.astype("<f4").tobytes(),
            heads["kind"].tobytes(),
            b"\0" * (wide and len(heads) % 2),
            heads["corners"].astype("<u2" if wide else "u1").tobytes(),
            steps.astype("<i2" if wide else "i1").tobytes(),
        ]
    )


def decode(chunk: bytes) -> Shapes:
    """The outlines of a chunk (not compressed); their areas and reaches are not in it."""
    _, count, flags, corners = HEADER.unpack_from(chunk)
    wide = flags & WIDE
    heads = np.zeros(count, HEAD)
    at = HEADER.size
    heads["id"] = np.frombuffer(chunk, "<u4", count, at)
    centres = np.frombuffer(chunk, "<f4", 2 * count, at + 4 * count).reshape(-1, 2)
    heads["x"], heads["y"] = centres.T
    at += 12 * count
    heads["kind"] = np.frombuffer(chunk, "u1", count, at)
    at += count + (wide and count % 2)
    heads["corners"] = np.frombuffer(chunk, "<u2" if wide else "u1", count, at)
    at += count * (2 if wide else 1)
    steps = np.frombuffer(chunk, "<i2" if wide else "i1", 2 * corners, at)
    return Shapes(heads, steps.reshape(-1, 2).astype(np.int16))


def corners_of(shapes: Shapes) -> list[NDArray[np.float64]]:
    """The open ring of each outline, x, y in level-0 pixels, to a quarter."""
    rings = []
    steps = np.split(shapes.steps.astype(np.int64), np.cumsum(shapes.heads["corners"])[:-1])
    for head, walked in zip(shapes.heads, steps, strict=True):
        centre = np.floor(4 * np.array([head["x"], head["y"]], np.float64) + 0.5)
        rings.append((centre + np.cumsum(walked, axis=0)) / 4)
    return rings


def _wide(shapes: Shapes) -> bool:
    most = np.iinfo(np.int8)
    steps = shapes.steps
    fits = not len(steps) or (steps.min() >= most.min and steps.max() <= most.max)
    return not fits or bool((shapes.heads["corners"] > np.iinfo(np.uint8).max).any())
