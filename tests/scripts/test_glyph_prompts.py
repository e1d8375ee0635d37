"""The fixed list of prompts is what its script writes."""

from importlib import resources

from ldm.evaluation.glyphs.prompts import FILE
from scripts.glyph_prompts import as_text, compose


def test_the_file_is_what_its_command_writes():
    assert resources.files("ldm.evaluation").joinpath(FILE).read_text(encoding="utf-8") == as_text(compose())
