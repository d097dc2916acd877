"""PNG pictures, drawn from SVG by resvg (the extra [png])."""

from __future__ import annotations

import os

from ompaffinity.errors import RequestError
from ompaffinity.interpreter import install_command

FONTS = {
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf": "DejaVu Sans",
    "/usr/share/fonts/dejavu-sans-fonts/DejaVuSans.ttf": "DejaVu Sans",
    "/usr/share/fonts/TTF/DejaVuSans.ttf": "DejaVu Sans",
    "/usr/share/fonts/truetype/liberation/LiberationSans-Regular.ttf": "Liberation Sans",
    "/usr/share/fonts/google-noto/NotoSans-Regular.ttf": "Noto Sans",
}
"""{file: family} of the fonts in PNG pictures, as Debian, Fedora and Arch Linux install them."""


def png_of(text: str) -> bytes:
    """Return the PNG picture of an SVG document.

    Raises:
        RequestError: resvg-py or a font is not installed.
    """
    try:
        import resvg_py
    except ImportError:
        command = install_command("ompaffinity[png]")
        raise RequestError(
            f"a PNG picture requires resvg-py; install it with: {command}, or write an SVG file"
        ) from None
    # Without a font, resvg leaves all texts out.
    found = next(((path, family) for path, family in FONTS.items() if os.path.exists(path)), None)
    if found is None:
        raise RequestError("a PNG picture requires a font; install the package fonts-dejavu-core, or write an SVG file")
    path, family = found
    return bytes(
        resvg_py.svg_to_bytes(
            svg_string=text,
            # Letters of 9 pixels are hard to read.
            zoom=2,
            sans_serif_family=family,
            font_files=[path],
            skip_system_fonts=True,
        )
    )
