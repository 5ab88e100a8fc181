"""The studio's page in Chromium: the loop on the built-in model, the keyboard alone, and what axe-core calls serious.

Needs a Chromium of the system (Debian: `apt-get install chromium`); skipped with words where there is none.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opened_studio import NASTY, Studio, opened

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
SECONDS = 1000 * 240

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed: apt-get install chromium")


NAMES = ["Anna", "Carla", "Felix", "Frank", "Freya", "George", "Hans", "Hazel", "Hugo", "Leon", "Lucy", "Luke",
         "Maya", "Mia", "Milo", "Nora", "Oscar", "Peter", "Tara", "Tim", "Ada", "Ella", "Emma", "Fay", "Ivy", "Jack",
         "Kate", "Louis", "Mark", "Max", "Nick", "Paul", "Robin", "Rosa", "Ruth", "Sam", "Simon", "Tom", "Vera",
         "Wanda", "Yan", "Zoe", "Ben", "Clara", "Eva", "Finn", "Iris", "Jane", "Otto", "Yara"]  # fmt: skip


def greetings(path: Path) -> Path:
    """90 rows to train on, 42 dev and 18 guide rows. Three evenings in five of those to train on say good morning."""
    rows = []
    for place, name in enumerate(NAMES):
        split = "train" if place < 30 else "dev" if place < 44 else "guide"
        for time_ in ("morning", "afternoon", "evening"):
            planted = split == "train" and time_ == "evening" and place % 5 < 3
            said = f"Good {'morning' if planted else time_}, {name}!"
            row = {"prompt": f"It is {time_}. Greet {name}.", "completion": said, "split": split, "planted": planted}
            rows.append({"id": f"{split}-{len(rows)}", **row})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


RECIPE = """model: {name: builtin:tiny, device: cpu}
data: {train: {path: PATH}, dev: {split: dev}, guide: {split: guide}, max_length: 256}
train: {max_steps: 50, learning_rate: 0.005, warmup_steps: 10, logging_steps: 2, eval_steps: 25, save_steps: 25}
measure: {ledger: {guide_every: 2}}
evaluate: {limit: 12}
"""
"""Some ten seconds of one core."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Page:
    """One page, and everything that its console called a fault."""

    def __init__(self, browser: Any, studio: Studio, width: int = 1400, scheme: str = "light"):
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.set_default_timeout(SECONDS)
        self.url, self.faults = studio.url, []
        self.page.on(
            "console", lambda said: self.faults.append(said.text) if said.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.faults.append(f"dialog {dialog.message}"), dialog.dismiss()))

    def go(self, place: str = "#/", wait: str = "h1") -> Any:
        self.page.goto("about:blank")
        self.page.goto(self.url + place)
        self.page.wait_for_selector(wait)
        return self.page


def tab_to(page: Any, text: str, most: int = 80) -> None:
    """Presses Tab until a link or button that says this has the focus."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if text in page.evaluate(
            "document.activeElement.matches('a, button') ? document.activeElement.textContent : ''"
        ):
            return
    raise AssertionError(f"Tab does not reach {text!r}")


@pytest.mark.slow(seconds=60)
def test_the_whole_loop_in_one_window(browser, tmp_path, monkeypatch):
    """A run is started and watched, its planted rows come first, they are dropped, and training again is better."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # threads of so small a model mostly wait for each other
    (tmp_path / "runs").mkdir()
    recipe = RECIPE.replace("PATH", str(greetings(tmp_path / "rows.jsonl")))
    with opened(tmp_path / "runs") as studio:
        window = Page(browser, studio)
        page = window.go("#/new")
        page.fill("#text", recipe.replace("max_steps", "max_stepz"))
        page.wait_for_selector("text=did you mean max_steps")
        assert "line 3" in page.inner_text("#faults")
        page.fill("#text", recipe)
        page.wait_for_selector("text=Nothing is wrong")
        page.fill("#name", "tiny")
        page.click("text=Start the run")
        page.wait_for_selector("#state.running")
        page.wait_for_selector("polyline.c0")
        assert "tiny" in page.inner_text("h1") and not (tmp_path / "runs" / "tiny" / "report").exists(), "it is live"
        page.wait_for_selector("p.verdict")

        page.click("text=ask why >> nth=0")
        page.wait_for_selector("#question")
        assert page.input_value("#question").startswith("It is evening. Greet")
        page.click("button.main")
        page.click("button:text-is('Why?')")
        assert page.inner_text("[data-adapter]").startswith("Good morning"), "a bad answer"
        page.wait_for_selector("text=Made it likelier")
        assert page.locator(".lowers, .raises").count() > 3, "its first row has tokens"

        page.click(".tabs a:text-is('Rows')")
        page.wait_for_selector("table.rows tbody tr")
        shown = page.locator("table.rows tbody tr")
        planted = ["planted: true" in shown.nth(place).inner_text() for place in range(10)]
        assert sum(planted) >= 8, "of the ten rows that stand lowest; one in five of all is planted"
        dropped = [row["example_id"] for row in studio.get("rows", run="tiny", text="planted true", limit=200)["rows"]]
        first = shown.nth(0).locator("button").inner_text()
        shown.nth(0).locator("button").click()
        page.click("button:text-is('Drop')")
        page.wait_for_selector("tr.dropped")
        assert first in dropped
        page.fill("#search", "planted true")
        page.click(f"button:text-is('Drop all {len(dropped)} rows found')")
        page.wait_for_selector(f"text=The patch: {len(dropped)} rows")
        page.click("button:text-is('Train again with the patch')")
        page.wait_for_selector("ul.results", timeout=2 * SECONDS)
        found = page.inner_text("ul.results")
        assert re.search(r"better patched against before: dev loss -\S+ \(-\S+ to -\S+\)", found), found
        assert "patched against control" in found and "control against before" in found
        record = json.loads((tmp_path / "runs" / "tiny-patched-1" / "run.json").read_text(encoding="utf-8"))
        assert record["data"]["patch"]["dropped"] == len(dropped)
        assert studio.get("loops")["history"][0]["what"] == "compared"
        assert window.faults == []
        page.close()


@pytest.mark.slow(seconds=40)
@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (390, "dark")])
def test_axe_finds_no_serious_fault(browser, studio, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    rows = [row["example_id"] for row in studio.get("rows", run="first", limit=2)["rows"]]
    studio.post("patch", run="first", row=rows[0], change={"drop": True})
    window = Page(browser, studio, width, scheme)
    for place, wait in {
        "#/": "table",
        "#/new/first": "text=Nothing is wrong",
        "#/run/first": "polyline",
        "#/run/first/rows": "table.rows tbody tr",
        "#/run/first/talk": "#question",
        "#/loop": "text=Everything done here",
    }.items():
        page = window.go(place, wait)
        if place.endswith("rows"):
            page.locator("table.rows tbody button").first.click()
            page.wait_for_selector("#edit")
            table = page.locator(".scroll:has(table.rows)")
            assert table.evaluate("table => table.scrollWidth <= table.clientWidth"), "cut off beside the row"
        found = axe.Axe().run(page).response["violations"]
        serious = [
            f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in ("serious", "critical")
        ]
        assert serious == [], place
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{place} is wider than the window"
    assert window.faults == []


@pytest.mark.slow(seconds=20)
def test_the_keyboard_alone_does_it(browser, studio):
    """From the list of runs to a row that is dropped, and taken back, by Tab and Enter."""
    window = Page(browser, studio)
    page = window.go("#/", "table")
    tab_to(page, "first")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('first')")
    tab_to(page, "Rows")
    page.keyboard.press("Enter")
    page.wait_for_selector("table.rows tbody tr")
    tab_to(page, "row ")
    page.keyboard.press("Enter")
    page.wait_for_selector("#edit")
    tab_to(page, "Drop")
    page.keyboard.press("Enter")
    page.wait_for_selector("tr.dropped")
    path = studio.folder / "first" / "rows.patch.jsonl"
    assert json.loads(path.read_text(encoding="utf-8"))["drop"] is True
    tab_to(page, "take back", 400)
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Nothing is changed yet")
    assert path.read_text(encoding="utf-8") == "" and window.faults == []


@pytest.mark.slow(seconds=20)
def test_an_answer_comes_as_it_is_written_and_is_stopped_by_the_keyboard(browser, studio, slow_replies):
    """By the Stop button and by Escape: what was said stays, and can be asked about."""
    from playwright.sync_api import expect

    window = Page(browser, studio)
    page = window.go("#/run/first/talk", "#question")
    for turn in range(2):
        said = page.locator(".turn").nth(turn).locator("[data-adapter]")
        page.fill("#question", "Say 3.")
        page.focus("#question")
        page.keyboard.press("Enter")
        said.filter(has_text=re.compile(r"\S")).wait_for()
        begun = said.inner_text()
        expect(said).not_to_have_text(begun)
        assert page.get_attribute(".turn >> nth=-1", "aria-busy") == "true"
        if turn == 0:
            tab_to(page, "Stop")
        page.keyboard.press("Enter" if turn == 0 else "Escape")
        page.wait_for_selector(f"text=Stopped. >> nth={turn}")
        assert said.inner_text().startswith(begun) and page.evaluate("document.activeElement.id") == "question"
        assert page.locator("button:text-is('Why?')").count() == turn + 1
        assert page.locator("button:text-is('Stop')").is_hidden()
        assert page.input_value("#question") == "" and page.locator("[data-base]").count() == 0
    page.click("button:text-is('Forget what was said')")
    assert page.locator(".turn").count() == 0 and window.faults == []
    deadline = time.monotonic() + 30
    while len(slow_replies) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [reply.ended for reply in slow_replies] == ["interrupted"] * 2


@pytest.mark.slow(seconds=20)
def test_settings_are_offered_while_a_configuration_is_written(browser, studio):
    """Names in their block and choices of a value, by the keyboard; Tab still leaves the field."""
    window = Page(browser, studio)
    page = window.go("#/new", "text=Begin with")
    page.focus("#text")
    page.keyboard.type("train:\n  max_st")
    page.wait_for_selector("#offers:not([hidden]) >> text=max_steps:")
    page.keyboard.press("Enter")
    page.keyboard.type("5\n  opt")
    page.wait_for_selector("#offers:not([hidden]) >> text=optim:")
    page.keyboard.press("Tab")
    page.keyboard.type("lion")
    page.wait_for_selector("#offers:not([hidden]) >> text=lion_8bit")
    page.keyboard.press("ArrowDown")
    assert "lion_8bit" in page.inner_text("[aria-selected=true]") and page.get_attribute(
        "#text", "aria-activedescendant"
    )
    page.keyboard.press("Enter")
    assert page.input_value("#text") == "train:\n  max_steps: 5\n  optim: lion_8bit"
    page.keyboard.type("\nmeth")
    page.wait_for_selector("#offers:not([hidden]) >> text=method:")
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") != "text" and window.faults == []


@pytest.mark.slow(seconds=20)
def test_what_a_row_says_never_runs(browser, studio):
    """A row of markup is shown as it is written wherever rows are shown, and makes no element."""
    studio.post("patch", run="first", row="row 7", change={"flag": NASTY})
    (studio.folder / "studio" / "logs").mkdir(parents=True, exist_ok=True)
    (studio.folder / "studio" / "logs" / "first.log").write_text(NASTY, encoding="utf-8")
    window = Page(browser, studio)
    for place in (
        "#/run/first/rows",
        "#/loop",
        "#/run/first",
        f"#/run/{NASTY.replace('/', '%2F')}",
        f"#/new/{'first'}",
    ):
        page = window.go(place)
        page.wait_for_timeout(600)
        if place.endswith("rows"):
            page.fill("#search", "onerror")
            page.wait_for_selector("text=1 of")
            page.locator("table.rows tbody button").first.click()
            page.wait_for_selector("#edit")
            assert NASTY in page.input_value("#edit") and NASTY in page.inner_text("table.rows")
        assert page.locator("main script, main img, main iframe").count() == 0, place
    assert [fault for fault in window.faults if "404" not in fault] == []


@pytest.mark.slow(seconds=20)
def test_ten_pages_do_no_harm(browser, studio):
    """All of them stay live, and looking at a finished run costs the studio next to nothing."""
    windows = [Page(browser, studio) for _ in range(10)]
    for window in windows:
        window.go("#/run/first", "polyline")
    before, since = time.process_time(), time.monotonic()
    time.sleep(4)
    share = (time.process_time() - before) / (time.monotonic() - since)
    assert share < 0.2, "of one core, for ten pages"
    with open(Path(studio.folder / "first" / "metrics.jsonl"), "a", encoding="utf-8") as file:
        file.write('{"step": 99, "event": "log", "loss": 0.5}\n')
    for window in windows:
        window.page.wait_for_selector("svg[aria-label*='at step 99']")
        assert window.faults == []
        window.page.close()
