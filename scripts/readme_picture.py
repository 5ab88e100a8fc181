"""Draws the README's picture: the rows of a finished quickstart in the studio, worst first, with the text of the worst.

    ghosttune quickstart --out runs/quickstart && python scripts/readme_picture.py runs docs/images/studio.png

Needs `pip install 'ghosttune[studio]' playwright pillow` and the Chromium of the system.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from PIL import Image
from studio_pictures import studio

SIZE = {"width": 1280, "height": 800}
LARGEST = 200_000
"""Bytes: a README is read over slow lines too."""


def main(folder: Path, out: Path) -> None:
    from playwright.sync_api import sync_playwright

    with studio(folder) as address, sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = chromium.new_page(viewport=SIZE, color_scheme="light")
        page.set_default_timeout(240_000)
        page.goto(f"{address}#/run/quickstart/rows")
        page.wait_for_selector("table.rows tbody tr")
        page.locator("table.rows tbody button").first.click()
        page.wait_for_selector("#edit")
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_timeout(400)
        page.screenshot(path=out)
        chromium.close()
    Image.open(out).convert("RGB").quantize(64).save(out, optimize=True)  # few colours, a third of the bytes
    if out.stat().st_size > LARGEST:
        sys.exit(f"{out} is {out.stat().st_size:,} bytes, more than {LARGEST:,}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
