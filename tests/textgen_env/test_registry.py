"""Registries of parts by name."""

import pickle
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import textgen_env.registry
from textgen_env.registry import MissingPluginError, Registry, RegistryError, load_plugin


class Base:
    pass


class First(Base):
    pass


class Second(Base):
    pass


def classes():
    return Registry("PARTS", "part", "textgen.tests", Base, of_classes=True)


def test_entries_are_found_by_name_in_the_order_of_their_registration():
    parts = classes()
    parts.register("second", Second)
    parts["first"] = First
    assert list(parts) == ["second", "first"]
    assert parts["first"] is First
    assert [parts.name_of(Second), parts.name_of(Second())] == ["second", "second"]
    with pytest.raises(KeyError):
        parts["third"]


def test_a_name_is_taken_once():
    parts = classes()
    parts.register("first", First)
    parts.register("first", First)
    with pytest.raises(RegistryError, match=r"'first', which is taken by .*First: choose another"):
        parts.register("first", Second)
    with pytest.raises(RegistryError, match="name must be an identifier, got 'a-b'"):
        parts.register("a-b", Second)


@pytest.mark.parametrize("entry", [First(), int])
def test_an_entry_of_another_kind_is_refused(entry):
    with pytest.raises(RegistryError, match="part x must be a class that derives from Base"):
        classes().register("x", entry)


def test_what_is_not_registered_is_told_how():
    with pytest.raises(
        RegistryError, match=r'part must be registered, got a First: call PARTS.register\("name", '
    ):
        classes().name_of(First())


def test_names_are_watched():
    parts, seen = classes(), []
    parts.register("first", First)
    parts.watch(seen.append)
    parts.register("second", Second)
    parts.register("second", Second)
    assert seen == ["first", "second"]


def test_an_entry_tells_where_it_is_from():
    parts = classes()
    parts.register("first", First)
    assert parts.origin_of(First) == __name__
    assert parts.origin_of(Second) is None


@pytest.fixture
def declare(monkeypatch):
    """Return a function that declares entry points, name -> value."""

    def declare(**values):
        points = [EntryPoint(*each, "textgen.tests") for each in values.items()]
        monkeypatch.setattr(textgen_env.registry, "entry_points", lambda group: points)

    return declare


def test_an_entry_point_is_imported_when_it_is_asked_for(declare):
    declare(second=f"{__name__}:Second", absent="no_such_module:Part")
    parts = classes()
    parts.register("first", First)
    assert list(parts) == ["first", "second", "absent"]
    assert parts.loaded() == [First]
    assert parts["second"] is Second
    assert parts.name_of(Second) == "second"
    with pytest.raises(
        RegistryError, match=r"part absent of the distribution .* got ModuleNotFoun"
    ):
        parts["absent"]


def test_an_entry_point_with_a_name_that_is_taken_is_left_out(declare):
    declare(first="other_package:First")
    parts = classes()
    parts.register("first", First)
    with pytest.warns(UserWarning, match="part first .* is left out: the name is taken by .*First"):
        assert list(parts) == ["first"]
    assert parts["first"] is First


def test_the_error_of_a_missing_plugin_survives_pickling():
    error = pickle.loads(pickle.dumps(MissingPluginError(Path("run"), "mine")))
    assert str(error) == "run needs the plugin mine, which is not loaded"


class Unfinished(Base, ABC):
    @abstractmethod
    def act(self):
        """Act in some way."""


@dataclass(frozen=True)
class Demanding(Base):
    count: int


def test_a_class_that_cannot_be_made_without_arguments_is_refused():
    parts = classes()
    with pytest.raises(RegistryError, match="part unfinished must define act, got Unfinished"):
        parts.register("unfinished", Unfinished)
    with pytest.raises(RegistryError, match="got Demanding with none for count"):
        parts.register("demanding", Demanding)


def test_a_plugin_that_fails_is_named_with_its_line(tmp_path):
    with pytest.raises(RegistryError, match="must be a file that is there, got none"):
        load_plugin(str(tmp_path / "nowhere.py"))
    broken = tmp_path / "broken_plugin_of_a_test.py"
    broken.write_text("x = 1\nimport no_such_module_at_all\n")
    with pytest.raises(RegistryError, match=r"broken_plugin_of_a_test\.py, line 2, must be impor"):
        load_plugin(str(broken))
