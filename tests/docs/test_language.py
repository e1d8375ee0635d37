"""Pages, presets and `--help` use the field's standard terms: scripts/check_language.py has the list."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def check_language(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import check_language

    yield check_language
    sys.modules.pop("check_language")


def test_no_private_word_stands_in_pages_presets_or_help(check_language, monkeypatch, capsys):
    pytest.importorskip("mkdocs")  # whose hooks list the commands
    monkeypatch.setattr(sys, "argv", ["check_language.py"])
    assert check_language.main() == 0, capsys.readouterr().out


def test_code_quotations_and_kept_phrases_do_not_count(check_language):
    text = (
        "The whole picture, `draw`, a picture:\n```bash\nldm draw\n```\n> told\n\nwhole numbers, kinds [a](judge.md)\n"
    )
    assert check_language.count(check_language.prose(text)) == {"pictures?": 2, "whole": 1, "kinds?": 1}
    assert len(check_language.excess("README.md", check_language.count("told and told"))) == 1
