"""A registry that several threads ask first at the same time, as the studio's and the server's do."""

import importlib
from concurrent.futures import ThreadPoolExecutor

from ghosttune.registry import Registry

MODULE = """import time
import slow_things
time.sleep(0.2)
slow_things.registry.register(__name__.rpartition(".")[2])(lambda: None)
slow_things.registry.names()
"""


def test_all_of_them_see_all_entries(tmp_path, monkeypatch):
    (tmp_path / "slow_things").mkdir()
    (tmp_path / "slow_things" / "__init__.py").write_text("", encoding="utf-8")
    for name in "abc":
        (tmp_path / "slow_things" / f"{name}.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("thing", "slow_things")
    importlib.import_module("slow_things").registry = registry
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: registry.names(), range(4)))
    assert found == [["a", "b", "c"]] * 4
