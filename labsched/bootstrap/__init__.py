"""Set-up before the virtual environment exists: the standard library alone, no Django, no root."""
