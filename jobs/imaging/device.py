"""What the network runs on: the CPU's or the GPU's name, threads, and the precisions it is good at."""

from __future__ import annotations

import functools
import os
import platform
import re
from pathlib import Path

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def describe_device(device: torch.device | None = None) -> dict[str, str | int]:
    """What the network runs on, or `device`, for the manifest and the operator's page."""
    device = device or used_device()
    described: dict[str, str | int] = {
        "machine": platform.machine(),
        "torch": torch.__version__,
        "threads": cores(),
        "precision": best_precision(device),
        "device": "cpu",
        "cpu_flags": " ".join(cpu_flags()),
    }
    if device.type == "cuda":
        described |= {
            "device": torch.cuda.get_device_name(device),
            "cuda": str(torch.version.cuda),
            "cudnn": torch.backends.cudnn.version() or 0,  # type: ignore[no-untyped-call]
        }
    return described


def used_device() -> torch.device:
    """The GPU that this process sees, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def cpu_flags() -> tuple[str, ...]:
    """The instruction sets that decide how fast the network is on this CPU."""
    wanted = {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "bf16"}
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ()
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return tuple(sorted(wanted & set(line.group(1).split()))) if line else ()


def precisions(device: torch.device) -> tuple[str, ...]:
    """Those that a device runs: convolutions in fp16 need a GPU."""
    return tuple(DTYPES) if device.type == "cuda" else ("fp32", "bf16")


def best_precision(device: torch.device) -> str:
    """bf16 where the device computes it natively; it costs no accuracy."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if "amx_bf16" in cpu_flags() else "fp32"
