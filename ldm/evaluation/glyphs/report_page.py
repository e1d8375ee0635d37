"""The numbers of `ldm evaluate` of a glyph model as one page; see `ldm.evaluation.html`."""

from pathlib import Path

from ldm.evaluation.html import curves, folded, heading, note, page, percent, picture, table

NAMES = {
    "layout": "the layout", "radical": "the radical", "components_f1": "components (F1)",
    "strokes_error": "strokes, mean error", "style": "the style",
}  # fmt: skip
SECTIONS = {
    "layout": "Asked for a layout", "radical": "Asked for a radical", "style": "Asked for a style",
    "pair": "Composition: layout with radical, a pair never seen in training",
    "character": "Composition: everything said of a character never seen in training",
}  # fmt: skip
PARTS = ("judged/layout", "judged/radical")  # of the light evaluation during training
DISTANCES = ("fd", "kid", "mmd", "precision", "recall", "density", "coverage")


def report_page(metrics: dict, output: Path) -> str:
    """The whole page; pictures are the PNG files that lie in `output`."""
    model, plan = metrics["model"], metrics["plan"]
    judges = ", ".join(f"{name} {digest}" for name, digest in metrics["judges"].items())
    parts = [
        note(
            f"Weights {model['digest']}; {plan['sets']} sets of seeds from {plan['seed']} on; {metrics['seconds']} s; "
            f"judges: {judges}. Intervals are 95%. Floor: the same pictures with the prompts dealt out anew, or real "
            "glyphs against real glyphs. Ceiling: real characters that neither model nor judge has seen, or real "
            "glyphs spoiled on purpose. On the sheets a green border means that the judge sees all that was asked for."
        ),
        *([_against(metrics["against"])] if "against" in metrics else []),
        *(part for name, section in metrics["adherence"].items() for part in _adherence(name, section, output)),
        heading("Likeness to real glyphs"),
        note("The model's pictures of the test split's captions against that split. Distances: less is better."),
        *(_fidelity(name, found) for name, found in metrics["fidelity"].items()),
        *_clip(metrics.get("clip")),
        heading("Well formed?"),
        _validity(metrics["validity"]),
        *_novelty(metrics["novelty"], output),
        *_autoencoder(metrics["vae"], output),
        *_learning(metrics.get("learning")),
    ]
    adapters = f" with {model['lora']}" if model["lora"] else ""
    return page(f"Evaluation of {model['source']}{adapters}", parts)


def _adherence(name: str, section: dict, output: Path) -> list[str]:
    heads = ["agrees in", "value", "95%", "ceiling", "floor", "spread over sets", "pictures"]
    rows = [
        [NAMES[measure], *(_of(measure, v) for v in (m["value"], m["interval"], m["ceiling"], m["floor"]))]
        + [_of(measure, m["sets"]["spread"]), m["n"]]
        for measure, m in section["measures"].items()
    ]
    shares = {row["prompt"]: row["agreement"] for row in section["prompts"]}
    each = [[prompt, percent(a["share"]), _of("", a["interval"]), a["n"]] for prompt, a in shares.items()]
    prompts = [folded("Prompt by prompt", [table(["prompt", "agree", "95%", "pictures"], each)])] if each else []
    sheet = picture(output / f"{name}.png", f"{SECTIONS[name]}: the first pictures")
    return [heading(SECTIONS[name]), table(heads, rows), *prompts, folded("Pictures", [sheet])]


def _of(measure: str, value) -> str:
    """A share as percent, a count as it is; of two numbers both."""
    if isinstance(value, list):
        return " to ".join(_of(measure, v) for v in value)
    return "" if value is None else f"{value:.2f}" if measure == "strokes_error" else percent(value)


def _fidelity(name: str, found: dict) -> str:
    sets = {"generated": found["generated"], "floor: other real glyphs": found["floor"]}
    sets |= {f"ceiling: {key}": value for key, value in found["ceiling"].items()}
    rows = [[key, *(_distance(value[d]) for d in DISTANCES)] for key, value in sets.items()]
    return table([f"by the {name}", *(d.upper() if len(d) < 4 else d for d in DISTANCES)], rows)


def _distance(found: dict) -> str:
    value, error = found["value"], found["error"]
    return f"{value:.3g}" if error is None else f"{value:.3g} ± {error:.1g}"


def _clip(section: dict | None) -> list[str]:
    if section is None:
        return []
    cosine, recall = section["cosine"], section["recall"]
    low, high = cosine["interval"]
    rows = [["cosine of picture and prompt", f"{cosine['value']:.3f} ({low:.3f} to {high:.3f})"]]
    rows[0] += [f"{cosine[name]:.3f}" for name in ("ceiling", "floor")]
    for name, found in recall.items():
        k = int(name.split("@")[1])
        top, bottom = percent(section["recall_of_real"][name]), percent(min(1.0, k / found["prompts"]))
        rows.append([name.replace("_", " "), f"{percent(found['mean'])} ± {percent(found['spread'])}", top, bottom])
    heads = [f"by CLIP {section['digest']}", "generated", "ceiling", "floor"]
    return [heading("As CLIP sees it"), table(heads, rows)]


def _validity(section: dict) -> str:
    rows = [
        [name.replace("_", " "), *(f"{m[kind]['mean']:.4g} ({m[kind]['sd']:.3g})" for kind in ("generated", "real"))]
        + [f"{m[key]:.3g}" for key in ("distance", "floor", "floor_95")]
        for name, m in section["measures"].items()
    ]
    read = ", ".join(f"{kind} {percent(found['share'])}" for kind, found in section["readable"].items())
    heads = ["mean (deviation)", "generated", "real", "distance", "floor", "95% of floors"]
    return table(heads, rows) + note(f"Read by the OCR with a confidence of one half or more: {read}.")


def _novelty(section: dict, output: Path) -> list[str]:
    made, real = section["generated"], section["real_unseen"]
    rows = [
        [text, *(percent(kind[key]["share"]) if key in kind else "" for key in ("copies", "existing"))]
        + [percent(kind["new_and_well_formed"]["share"]) if "new_and_well_formed" in kind else ""]
        for text, kind in (("generated", made), ("real characters unseen in training (false alarms)", real))
    ]
    heads = ["", "copies of training glyphs", "existing characters", "new and well formed"]
    nearest = picture(
        output / "nearest.png",
        "The pictures nearest to a training glyph, then some of all, each above its nearest glyph",
    )
    distinct = percent(section["distinct"]["share"])
    repeated = note(f"Pictures that no earlier one of the same prompt is nearly equal to: {distinct}.")
    return [heading("New?"), table(heads, rows), repeated, nearest]


def _autoencoder(vae: dict, output: Path) -> list[str]:
    sets = {"validation glyphs": vae, "the densest tenth": vae["densest_decile"]}
    rows = [
        [name, v["psnr"], v["ssim"], percent(v["ocr"]["share_before"]), percent(v["ocr"]["same_after"])]
        for name, v in sets.items()
    ]
    sheet = picture(output / "reconstructions.png", "Glyphs, and what is left of them after the autoencoder")
    return [heading("Autoencoder"), table(["", "PSNR", "SSIM", "read before", "same after"], rows), sheet]


def _learning(section: dict | None) -> list[str]:
    if section is None:
        return []
    over, shown = section["curves"], {"loss": ("loss", "train_loss"), "gap": ("gap",), "share": PARTS}
    drawn = {label: {name: over[name] for name in names if name in over} for label, names in shown.items()}
    plots = [curves(lines, "step", label) for label, lines in drawn.items() if lines]
    columns = [name for name in ("train", "validation", "gap", "shuffled", "empty") if name in section["all"]]
    rows = [
        [f"{row['from']:.2f} to {row['to']:.2f}"]
        + [f"{row[c]['mean']:.3f} ± {row[c]['standard_error']:.1g}" for c in columns]
        + [f"{row[name]:.3f}" for name in ("zero", "mean", "linear")]
        for row in section["bins"]
    ]
    text = (
        "Loss at every time, on training and on validation glyphs with the same noise; what it rises by when captions "
        "are exchanged or left out; and the losses of predicting nothing, the mean, and the best linear filter's guess."
    )
    return [heading("Learning"), *plots, note(text), table(["time", *columns, "zero", "mean", "linear"], rows)]


def _against(found: dict) -> str:
    heads = ["", "agrees in", "the other", "this one", "difference", "95%", "verdict"]
    rows = [
        [SECTIONS[section], NAMES.get(name, name), _of(name, m["a"]), _of(name, m["b"])]
        + [_of(name, m["difference"]["value"]), _of(name, m["difference"]["interval"]), m["verdict"]]
        for section, measures in found["sections"].items()
        for name, m in measures.items()
    ]
    text = f"A is {found['a']['source']} ({found['a']['digest']}), B is this model, with the same prompts and seeds."
    return heading("Against the other model") + note(text) + table(heads, rows)
