"""The summary of a glyph model in words: what `ldm evaluate` prints."""

from typing import Any

from ldm.evaluation.html import percent

TITLES = {
    "layout": "layout",
    "radical": "radical",
    "pair_layout": "held-out pairs: layout",
    "pair_radical": "held-out pairs: radical",
    "pair_both": "held-out pairs: both",
    "later_radical": "second list of pairs: radical",
    "later_both": "second list of pairs: both",
    "place_both": "component in a position",
    "component_seen_both": "two components, seen together",
    "component_unseen_both": "two components, never together",
    "character_layout": "all phrases: layout",
    "character_radical": "all phrases: radical",
    "character_components_f1": "all phrases: components (F1)",
    "character_readable": "all phrases: read as any character",
    "character_read": "all phrases: read as the character",
    "named_both": "components named: layout and all of them",
    "named_components_f1": "components named: components (F1)",
    "named_readable": "components named: read as any character",
    "named_read": "components named: read as the character",
}
STROKES = {"character_strokes_error": "all phrases: strokes", "named_strokes_error": "components named: strokes"}


def lines(summary: dict[str, Any]) -> list[str]:
    """A line for each number: accuracy with its interval, what real glyphs reach, and chance level."""
    found = []
    for name, title in TITLES.items():
        if one := summary.get(name):
            found.append((title, percent(one["value"]) + _references(one)))
    for name, title in STROKES.items():
        if strokes := summary.get(name):
            found.append((title, f"{strokes['value']:.1f} off on average{_references(strokes, '{:.1f}')}"))
    if kid := summary.get("kid"):
        measured = ", ".join(f"{value:.3f} ({name})" for name, value in kid.items())
        found.append(("KID", f"{measured}; lower is better, other real glyphs are near 0"))
    for name, title, text in (
        ("blank", "blank", "of the images have no ink, and count as wrong"),
        ("copies", "copies", "of the glyphs are copies of training images"),
        (
            "new_and_well_formed",
            "new and well-formed",
            "agree with their prompt, are no copies and no existing characters",
        ),
        ("vae_read_the_same", "autoencoder", "of real glyphs are read the same after it"),
    ):
        if summary.get(name) is not None:
            found.append((title, f"{percent(summary[name])} {text}"))
    width = max((len(title) for title, _ in found), default=0)
    return [f"{title:<{width}}  {text}" for title, text in found]


def _references(found: dict[str, Any], form: str = "{:.1%}") -> str:
    """' (95%: 93.0% to 97.1%; real glyphs 99.0%, chance 12.0%)'."""
    interval = " to ".join(map(form.format, found["interval"] or ()))
    others = [("real glyphs", found["ceiling"]), ("chance", found["floor"])]
    beside = ", ".join(f"{name} {form.format(value)}" for name, value in others if value is not None)
    said = "; ".join(filter(None, [interval and f"95%: {interval}", beside]))
    return f" ({said})" if said else ""
