#!/usr/bin/env python
"""Django's command line for labsched."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run one management command with labsched's settings; a wrong setting ends with its sentence."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "labsched.settings")
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        sys.exit(f"labsched: {error}")


if __name__ == "__main__":
    main()
