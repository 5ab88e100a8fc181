"""Names of methods, tasks and datasets: found in their folders and in other packages, refused when unknown."""

from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint

import pytest

from ghosttune import registry
from ghosttune.errors import GhosttuneError, InputError
from ghosttune.registry import DATASETS, METHODS, TASKS, Registry


@pytest.mark.parametrize("known", [METHODS, TASKS, DATASETS], ids=lambda known: known.kind)
def test_every_entry_can_be_found_and_says_what_it_is(known):
    assert known.names() == sorted(known.names()) != []
    for entry in known:
        assert known[entry.name] is entry
        assert entry.meaning and not entry.meaning.startswith(" ") and callable(entry.build)


def test_an_unknown_name_is_an_input_error_with_the_nearest():
    with pytest.raises(InputError, match=r"no dataset is called 'e2e_nlgg'; did you mean e2e_nlg\? \(known: "):
        DATASETS["e2e_nlgg"]


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="method 'lora' is registered twice"):
        METHODS.names() and METHODS.register("lora")(print)


@pytest.fixture
def foreign(monkeypatch):
    """A registry of an empty home, to which another package adds the module `foreign`."""
    home, module = types.ModuleType("home"), types.ModuleType("foreign")
    home.__path__ = []
    monkeypatch.setitem(sys.modules, "home", home)
    monkeypatch.setitem(sys.modules, "foreign", module)
    monkeypatch.setattr(registry, "entry_points", lambda group: [EntryPoint("x", "foreign:enter", group)])
    return Registry("method", "home"), module


def test_another_package_can_add_a_method(foreign):
    own, module = foreign

    def enter(settings):
        """What it does."""

    module.enter = own.register("theirs")(enter)
    assert own.names() == ["theirs"] and own["theirs"].meaning == "What it does."


def test_a_package_that_cannot_be_loaded_is_named(foreign):
    own, _ = foreign
    with pytest.raises(GhosttuneError, match="foreign:enter, which another package adds to home, cannot be loaded"):
        own.names()
