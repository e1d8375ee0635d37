"""What Windows takes no file of: the names that its documentation lists, and near ones that it takes."""

import pytest

from ldm.apps.project import name_of
from ldm.config import loading
from ldm.config.settings import VaeSettings
from ldm.utils.errors import UserError
from ldm.utils.file_names import windows_objection

REFUSED = [
    "con",
    "NUL",
    "Aux",
    "nul.txt",
    "com1",
    "LPT9.tar.gz",
    "COM²",
    "a:b",
    'a"b',
    "a|b",
    "x?",
    "a\tb",
    "end.",
    "end ",
]


@pytest.mark.parametrize("name", REFUSED)
def test_what_windows_does_not_take(name):
    assert windows_objection(name)


@pytest.mark.parametrize("name", ["console", "nullify", "com", "com10", "my.nul", "a b", "水", ".hidden", "v1.0"])
def test_what_it_does(name):
    assert windows_objection(name) is None


def test_a_run_of_such_a_name_is_refused_there_and_nowhere_else(monkeypatch):
    settings = VaeSettings(name="photos/aux")
    assert loading.run_dir(settings, "vae").parts == ("runs", "photos", "aux", "vae")
    monkeypatch.setattr(loading, "WINDOWS", True)
    with pytest.raises(UserError, match="'aux' is the name of a device.*--name"):
        loading.run_dir(settings, "vae")


def test_a_project_gets_a_name_that_every_system_takes():
    assert name_of("some/where/con") == "my-con" and name_of("///") == "my" and name_of("a/My cats") == "My-cats"
