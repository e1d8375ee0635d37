"""The contact sheets ask for what they say, and hold an image for each prompt and seed."""

from types import SimpleNamespace

import numpy as np
from PIL import Image

from ldm.data.glyphs.heldout import HELD_OUT
from ldm.evaluation.glyphs.phrases import parts_asked_for
from ldm.utils.image_grid import image_grid
from scripts import contact_sheet
from tests.tiny_model import tiny_pipeline


def test_every_prompt_about_places_names_two_components_that_are_known():
    found = [parts_asked_for(prompt) for prompt in contact_sheet.PLACES]
    assert [len(parts) for parts in found] == [2] * len(found)
    assert found[0] == [("water", "left"), ("horse", "right")] and found[7] == [("gate", "around"), ("ear", "inside")]


def test_the_sheet_of_pairs_has_all_held_out_ones():
    assert len(contact_sheet.SHEETS["pairs"]()) == len(HELD_OUT)


def test_described_characters_stand_beside_the_real_ones(monkeypatch):
    rows = [SimpleNamespace(codepoint=one.codepoint) for one in contact_sheet.described()[::-1]]
    test = SimpleNamespace(items=[(row, "hei", 0) for row in rows], image=lambda i: np.full((2, 2, 1), i, np.uint8))
    monkeypatch.setattr(contact_sheet, "splits", lambda options: {"test": test})
    prompts, first = contact_sheet.SHEETS["characters"](), contact_sheet.real_glyphs(16)
    assert [first[prompt].getpixel((0, 0)) for prompt in prompts] == [*range(len(rows))][::-1]
    assert all(len(parts_asked_for(prompt)) >= 2 for prompt in prompts)


def test_a_sheet_has_a_labelled_row_of_images_for_each_prompt(monkeypatch, tmp_path):
    monkeypatch.setattr(contact_sheet, "load_pipeline", lambda model: tiny_pipeline())
    assert contact_sheet.main(["tiny", str(tmp_path / "sheet.png"), "--columns", "2"]) == 0
    with Image.open(tmp_path / "sheet.png") as sheet, image_grid([Image.new("L", (16, 16))] * 2, 2) as row:
        assert sheet.size == (row.width, len(contact_sheet.COMMON) * (row.height + contact_sheet.LINE))
