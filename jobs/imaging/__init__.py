"""What a job does to pixels: read, find tissue, tile, segment, stitch, measure, export.

A pure library: no Django, no Redis. Importing the package loads nothing heavy; `pipeline` does.
"""

from __future__ import annotations
