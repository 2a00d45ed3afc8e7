"""Shows a page in the user's browser. It imports the standard library alone, as `demo.py` does."""

from __future__ import annotations

import os
import sys
import webbrowser


def opened(address: str) -> bool:
    """Show the page of this address in a browser. False without a browser, or without a screen,
    where `webbrowser` would start a browser for terminals."""
    screen = os.name == "nt" or sys.platform == "darwin"
    screen = screen or any(os.environ.get(k) for k in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    try:
        return screen and webbrowser.open(address)
    except (webbrowser.Error, OSError):
        return False
