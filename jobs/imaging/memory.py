"""How the process holds its memory: freed memory is used again, and what stays lies apart."""

from __future__ import annotations

import ctypes
import math
import mmap
import threading
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_memory() -> None:
    """Let the C library reuse freed memory instead of handing it back to the system.

    Every layer of the network wants tens of megabytes, and pages fresh from the system cost more than
    the layer itself (2 to 3 times the time of the whole network). Only glibc has these settings.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for name, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 1 << 30), (M_ARENA_MAX, 1)):
            mallopt(name, value)


def hand_back() -> None:
    """Give the system what is free now.

    Windows of many shapes break the free memory into parts of which the next shape finds none large
    enough: without this a process grew with the slide, to three times what one window wants.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def apart(shape: tuple[int, ...], dtype: type[Scalar]) -> NDArray[Scalar]:
    """An array of zeros outside the C library's memory, given back to the system with its last use.

    For what outlives a call of the network: between its buffers it would break the free memory into
    parts that none of the next ones fits, and the process grew with the slide. Raises MemoryError.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if not size:
        return np.zeros(shape, dtype)
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no memory for an array of {size} bytes: {error}") from error
    return np.frombuffer(pages, dtype).reshape(shape)


class Scratch(threading.local):
    """Memory of each thread that lies apart, for one array at a time."""

    def __init__(self) -> None:
        self._bytes = apart((0,), np.uint8)

    def zeros(self, shape: tuple[int, ...], dtype: type[Scalar]) -> NDArray[Scalar]:
        """An array of zeros; the one before it is gone."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size > self._bytes.nbytes:
            self._bytes = apart((size,), np.uint8)
        else:
            self._bytes[:size] = 0
        return self._bytes[:size].view(dtype).reshape(shape)


def copied_apart(array: NDArray[Scalar]) -> NDArray[Scalar]:
    """A copy of `array` that lies apart."""
    copy = apart(array.shape, array.dtype.type)
    copy[...] = array
    return copy
