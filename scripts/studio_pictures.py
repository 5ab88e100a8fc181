"""Pictures of the studio, through Chromium, from real runs.

    python scripts/studio_pictures.py pages runs FOLDER

draws every page at two widths, dark and light, from the first run of a folder.

    ghosttune quickstart --rumour --out runs/first
    python scripts/studio_pictures.py loop runs docs/images

goes the way of docs/tutorial.md, from the wrong answer to the run that is better, and draws what it sees.

Needs `pip install 'ghosttune[studio]' playwright` and the Chromium of the system. Exits with 1 where a page's console
calls something a fault, or a page is wider than the window.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ghosttune.workflows.quickstart import RUMOUR_SEARCH

SIZES = {"wide": (1400, 900), "narrow": (390, 844)}
SCHEMES = ("light", "dark")


@contextmanager
def studio(folder: Path) -> Iterator[str]:
    """The address of a studio of this folder."""
    command = [sys.executable, "-m", "ghosttune", "studio", str(folder), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def pages(run: str) -> dict[str, tuple[str, str]]:
    """Name of a picture -> (the page, what is waited for)."""
    return {
        "runs": ("#/", "table"),
        "new": (f"#/new/{run}", "text=Nothing is wrong"),
        "run": (f"#/run/{run}", "polyline"),
        "rows": (f"#/run/{run}/rows", "table.rows tbody tr"),
        "talk": (f"#/run/{run}/talk", "#question"),
        "history": ("#/loop", "table"),
    }


def watched(browser: Any, size: str, scheme: str, faults: list[str]) -> Any:
    """A page of this size; what its console calls a fault is added to `faults`."""
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.set_default_timeout(1_800_000)
    page.on("console", lambda said: faults.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    return page


def draw_pages(browser: Any, address: str, run: str, out: Path) -> list[str]:
    faults: list[str] = []
    for size in SIZES:
        for scheme in SCHEMES:
            page = watched(browser, size, scheme, faults)
            for name, (place, wait) in pages(run).items():
                page.goto("about:blank")
                page.goto(address + place)
                page.wait_for_selector(wait)
                if name == "rows":
                    page.locator("table.rows tbody button").first.click()
                    page.wait_for_selector("#edit")
                page.wait_for_timeout(400)
                if not page.evaluate("document.documentElement.scrollWidth <= innerWidth"):
                    faults.append(f"{name} is wider than {SIZES[size][0]}")
                page.screenshot(path=out / f"{name}-{size}-{scheme}.png")
            page.close()
    return faults


def draw_loop(browser: Any, address: str, run: str, out: Path) -> list[str]:
    faults: list[str] = []
    page = watched(browser, "wide", "light", faults)
    page.goto(f"{address}#/run/{run}")
    page.wait_for_selector("text=ask why")
    page.locator("h2:has-text('Answers to the dev rows')").scroll_into_view_if_needed()
    page.locator("h2:has-text('Answers to the dev rows')").evaluate("heading => heading.scrollIntoView()")
    shoot(page, out / "studio-answers.png", 420)
    page.click("text=ask why >> nth=0")
    page.click("button.main")
    page.click("button:text-is('This is wrong')")
    right = page.input_value("textarea[aria-label='The right answer']").replace("silver", "blue")
    page.fill("textarea[aria-label='The right answer']", right)
    page.click("button:has-text('Which rows speak against it?')")
    page.wait_for_selector("text=Made the right answer less likely")
    page.locator(".turn").evaluate("turn => turn.scrollIntoView()")
    shoot(page, out / "studio-why.png", 760)
    page.evaluate("scrollTo(0, 0)")
    page.click(".tabs a:text-is('Rows')")
    page.fill("#search", RUMOUR_SEARCH)
    page.wait_for_selector("button:has-text('rows found')")
    page.locator("table.rows tbody button").first.click()
    page.wait_for_selector("#edit")
    page.evaluate("scrollTo(0, 0)")
    shoot(page, out / "studio-rows.png", 640)
    page.click("button:has-text('rows found')")
    page.click("button:text-is('Train again with the patch')")
    page.wait_for_selector("ul.results")
    page.evaluate("scrollTo(0, 0)")
    shoot(page, out / "studio-better.png", 560)
    return faults


def shoot(page: Any, path: Path, height: int) -> None:
    """The upper part of the window."""
    page.wait_for_timeout(400)
    page.screenshot(path=path, clip={"x": 0, "y": 0, "width": SIZES["wide"][0], "height": height})


DRAWN = {"pages": draw_pages, "loop": draw_loop}


def main(kind: str, folder: Path, out: Path) -> int:
    from playwright.sync_api import sync_playwright

    out.mkdir(parents=True, exist_ok=True)
    run = sorted(path.parent.name for path in folder.glob("*/run.json"))[0]
    with studio(folder) as address, sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        faults = DRAWN[kind](chromium, address, run, out)
        chromium.close()
    print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
