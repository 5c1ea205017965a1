"""How slide files are read: one small interface, and a module for each library behind it."""

from __future__ import annotations
