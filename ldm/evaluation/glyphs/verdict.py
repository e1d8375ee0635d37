"""The bars that open the report of a glyph model."""

from typing import Any

from ldm.evaluation.verdict import Bar, number_bar, share_bar

ADHERENCE = {  # section and measure -> title and what the percentage says
    ("character", "layout"): ("Is the layout right?", "of glyphs have the layout that the prompt names"),
    ("character", "radical"): ("Is the radical right?", "of glyphs have the radical that the prompt names"),
    ("pair", "both"): (
        "Does it compose?",
        "of glyphs have both the layout and the radical of a pair that training never showed",
    ),
}


def bars(metrics: dict[str, Any]) -> list[Bar]:
    """Layout, radical, composition, likeness and copies, as far as they were measured."""
    found = []
    for (section, measure), (title, what) in ADHERENCE.items():
        measures = metrics["adherence"].get(section, {"measures": {}})["measures"]
        if measure in measures:
            found.append(share_bar(title, what, measures[measure]))
    found += [likeness_bar(name, one) for name, one in [*metrics.get("fidelity", {}).items()][:1]]
    if novelty := metrics.get("novelty"):
        copies = novelty["generated"]["copies"] | {"ceiling": novelty["real_unseen"]["copies"]["share"]}
        found.append(share_bar("Are they new?", "of glyphs are copies of training glyphs", copies, higher=False))
    return found


def likeness_bar(name: str, found: dict[str, Any]) -> Bar:
    """The kernel distance to real glyphs by one network, beside other real ones and the least spoiled ones."""
    kid = found["generated"]["kid"]["value"]
    spoiled = {key: one["kid"]["value"] for key, one in found["ceiling"].items()}
    least = min(spoiled, key=spoiled.__getitem__)
    nearer = "nearer" if kid < spoiled[least] else "no nearer"
    said = f"Kernel distance (KID) to real glyphs by the {name}: {nearer} than real glyphs that are {least}."
    marks = [(f"{least} glyphs", "chance", spoiled[least]), ("this model", "model", kid)]
    marks.append(("real glyphs", "real", found["floor"]["kid"]["value"]))
    return number_bar("Do they look real?", said, marks, "{:.2f}", higher=False)
