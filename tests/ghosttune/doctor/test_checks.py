"""Each check of rows and settings finds its case, and lets the nearest one through."""

from __future__ import annotations

from pathlib import Path

import pytest
from doctor_cases import ROW_CASES, SETTING_CASES

from ghosttune.config.advising import SETTINGS
from ghosttune.config.findings import Checks
from ghosttune.config.loading import load_config
from ghosttune.config.resolve import Facts, resolve_sources
from ghosttune.data.inspecting import ROWS
from ghosttune.errors import ConfigError
from ghosttune.stages.trying import MODEL
from ghosttune.workflows.check import ENVIRONMENT, RESUMING


def names(checks: Checks) -> list[str]:
    return [check.name for check in checks]


@pytest.mark.parametrize("name", ROW_CASES)
def test_a_check_of_rows_finds_its_case_alone(name):
    wrong, right, message = ROW_CASES[name]
    found = {finding.check: finding for finding in ROWS.findings(wrong())}
    assert message in found[name].message
    assert found[name].why and found[name].do
    assert name not in {finding.check for finding in ROWS.findings(right())}


@pytest.mark.parametrize(
    ("name", "place"), [(name, n) for name, cases in SETTING_CASES.items() for n in range(len(cases))]
)
def test_a_check_of_settings_finds_its_case(name, place):
    wrong, right, message = SETTING_CASES[name][place]
    found = {finding.check: finding for finding in SETTINGS.findings(wrong())}
    assert message in found[name].message and found[name].do
    assert name not in {finding.check for finding in SETTINGS.findings(right())}


def test_every_check_has_a_case_and_says_why():
    assert names(ROWS) == list(ROW_CASES) and names(SETTINGS) == list(SETTING_CASES)
    assert all(check.meaning and check.why for check in (*ROWS, *SETTINGS))


def test_the_page_names_every_check():
    page = (Path(__file__).parents[3] / "docs" / "checking.md").read_text(encoding="utf-8")
    every = [check.name for checks in (ROWS, SETTINGS, MODEL, ENVIRONMENT, RESUMING) for check in checks]
    assert len(every) == 24 and [name for name in every if name not in page] == []


def test_precision_that_the_device_does_not_have_is_refused():
    config = load_config(
        {"model": {"dtype": "bfloat16", "device": "cuda"}, "data": {"train": {"path": "builtin:rows"}}}
    )
    with pytest.raises(ConfigError, match=r"model\.dtype: is bfloat16, which cuda does not compute in; use float32"):
        resolve_sources(config, Facts(cuda_devices=1, device_has_bfloat16=False))
    assert resolve_sources(config, Facts(cuda_devices=1)).model.dtype == "bfloat16"


def test_a_finding_says_what_why_and_what_to_do_in_one_line():
    (found,) = SETTINGS.findings(SETTING_CASES["too few dev rows"][0][0]())
    said = str(found)
    assert said.startswith("too few dev rows: 5 dev rows") and "\n" not in said
    assert found.why in said and said.endswith(found.do)
