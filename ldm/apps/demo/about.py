"""What a model generates and which words it knows, for the page, from what its folder records."""

from functools import cached_property
from typing import Any

from ldm.apps.demo.prompt_chips import word_chips
from ldm.apps.demo.prompt_words import Words, described, glyph_caption_words, hints
from ldm.utils.untrusted_files import section

EXAMPLES = 6
KINDS = {1: "grey", 3: "colour", 4: "colour and transparent"}
KNOWN = {
    "glyphs": "invented Chinese characters, from a layout, {parts}, a meaning or a number of strokes",
    "digits": "coloured digits, from their number, colour, thickness, slant and background",
}


class About:
    """What a page says of a model.

    Args:
        config: the settings of its training, {} where they are unknown.
        model: the content of its ldm.json.
        shape: (channels, height, width) of an image.
        tokenizer: of transformers.
    """

    def __init__(self, config: dict, model: dict[str, Any], shape: tuple[int, int, int], tokenizer: Any):
        self.config, self.model, self.shape, self.tokenizer = config, model, shape, tokenizer

    @cached_property
    def examples(self) -> list[str]:
        """The sample prompts of its training."""
        own = section(self.config, "ldm", "sampling").get("prompts")
        prompts = own or section(self.model, "training").get("prompts")
        prompts = prompts if isinstance(prompts, list) else []
        return [prompt for prompt in prompts if isinstance(prompt, str) and prompt][:EXAMPLES]

    @property
    def sentence(self) -> str:
        return sentence(self.config, self.shape, self.examples)

    @property
    def facts(self) -> str:
        return facts(self.model)

    @property
    def of_glyphs(self) -> bool:
        return section(self.config, "data").get("source") == "glyphs"

    @property
    def has_positions(self) -> bool:
        return has_positions(self.config)

    @cached_property
    def words(self) -> Words:
        return Words(self.tokenizer)

    @cached_property
    def chips(self) -> list[str]:
        """Words to put into a prompt; none for glyphs, whose prompts are built by layout and component."""
        return [] if self.of_glyphs else word_chips(self.words, self.examples)

    def hints(self, prompt: str | None) -> list[str]:
        """What a person should know of a prompt: words that no caption has, and what is cut off."""
        if not self.of_glyphs:
            return hints(prompt, self.words)
        return hints(prompt, self.words, glyph_caption_words()) + described(prompt or "", self.has_positions)


def sentence(config: dict, shape: tuple[int, int, int], examples: list[str]) -> str:
    """'Generates colour images of 64 x 64 pixels from prompts such as “a tulip emoji”.'

    Args:
        config: the settings of the training, {} where they are unknown.
        shape: (channels, height, width) of an image.
        examples: prompts of its training.
    """
    channels, height, width = shape
    size = f"{width} x {height} pixels"
    source = section(config, "data").get("source")
    if isinstance(source, str) and source in KNOWN:
        parts = "components and their positions" if has_positions(config) else "a radical"
        return f"Generates {KNOWN[source].format(parts=parts)} ({size})."
    images = f"Generates {KINDS.get(channels, 'colour')} images of {size}"
    if not examples:
        return f"{images}, like those it was trained on."
    return f"{images} from prompts such as {' or '.join(f'“{prompt}”' for prompt in examples[:2])}."


def has_positions(config: dict) -> bool:
    """Whether captions of glyphs said where a component stands."""
    share = section(config, "data", "glyphs", "captions").get("places")
    return isinstance(share, int | float) and share > 0


def facts(model: dict[str, Any]) -> str:
    """'Trained on glyphs, 85 minutes. Licence: apache-2.0.' from the content of ldm.json, as far as it says so."""
    data, runs = section(model, "training").get("data"), section(model, "training", "runs")
    spent = [section(runs, name).get("minutes") for name in runs]
    minutes = sum(each for each in spent if isinstance(each, int | float))
    trained = [f"on {data}"] if isinstance(data, str) else []
    trained += [f"{minutes:.0f} minutes"] if minutes else []
    found = [f"Trained {', '.join(trained)}."] if trained else []
    licence = model.get("license")
    return " ".join(found + ([f"Licence: {licence}."] if isinstance(licence, str) else []))
