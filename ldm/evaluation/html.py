"""The report as one page: tables of the numbers, and the sheets beside it."""

from html import escape

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .2rem .8rem; text-align: right }
th { border-bottom: 2px solid #888 } td { border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left }
img { max-width: 100%; border: 1px solid #ccc } figure { margin: 1.5rem 0 } code { background: #f3f3f3 }
"""


def page(metrics: dict, pictures: list[str]) -> str:
    """The metrics of `ldm evaluate` as HTML that refers to its pictures by name."""
    model, plan = metrics["model"], metrics["plan"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Evaluation</title>",
        f"<style>{STYLE}</style><h1>Evaluation of {escape(str(model['source']))}</h1>",
        f"<p>weights {escape(model['digest'])}, seed {plan['seed']}, {metrics['seconds']} s. A green border: the "
        "classifier agrees with the prompt; red: it does not. Intervals are Wilson's, 95%.</p>",
        "<h2>Layouts</h2>",
        _agreement(metrics["layouts"]),
        "<h2>Radicals</h2>",
        _agreement(metrics["radicals"]),
        "<h2>Readability and ink, generated / real</h2>",
        _quality(metrics["quality"]),
        "<h2>Novelty</h2>",
        _table(["", "copies", "nearest, median", "95th percentile"], _novelty_rows(metrics["novelty"])),
        "<h2>Autoencoder</h2>",
        _table(["", "PSNR", "SSIM", "read before", "same after"], _vae_rows(metrics["vae"])),
    ]
    parts += [
        f"<figure><figcaption>{escape(n)}</figcaption><img src='{escape(n)}' loading=lazy></figure>" for n in pictures
    ]
    return "\n".join(parts) + "\n"


def _table(heads: list[str], rows: list[list]) -> str:
    body = "".join(f"<tr>{_cells(row, 'td')}</tr>" for row in rows)
    return f"<table><tr>{_cells(heads, 'th')}</tr>{body}</table>"


def _cells(values: list, tag: str) -> str:
    return "".join(f"<{tag}>{escape(_text(value))}</{tag}>" for value in values)


def _text(value) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"


def _number(value) -> str:
    return "-" if value is None else _percent(value["share"]) if isinstance(value, dict) else f"{value:.3f}"


def _agreement(section: dict) -> str:
    rows = []
    for entry in section.values():
        agreement, real = entry["agreement"], entry["classifier_on_real"] or {}
        low, high = (_percent(bound) for bound in agreement["interval"])
        judged = ", ".join(f"{name} {count}" for name, count in list(entry["judgements"].items())[:3])
        on_real = f"{_percent(real.get('accuracy'))} of {real.get('glyphs', 0)}"
        rows.append(
            [entry["prompt"], agreement["n"], _percent(agreement["share"]), f"{low} to {high}", on_real, judged]
        )
    return _table(["prompt", "pictures", "agree", "interval", "classifier on real glyphs", "seen as"], rows)


def _quality(section: dict) -> str:
    rows = []
    for layout, entry in section.items():
        made, real = entry["generated"], entry["real"]
        pairs = [(made[key], real[key] if real else None) for key in ("readable", "confidence", "ink", "grey")]
        rows.append([layout, *(" / ".join(_number(value) for value in pair) for pair in pairs)])
    return _table(["layout", "read by the OCR", "its confidence", "ink", "grey pixels"], rows)


def _novelty_rows(section: dict) -> list[list]:
    names = {"generated": "generated", "real_unseen": "real characters, unseen in training"}
    return [
        [text, _percent(n["copies"]["share"]), n["nearest_median"], n["nearest_95th_percentile"]]
        for key, text in names.items()
        for n in [section[key]]
    ]


def _vae_rows(vae: dict) -> list[list]:
    sets = {"validation glyphs": vae, "the densest tenth": vae["densest_decile"]}
    return [
        [name, v["psnr"], v["ssim"], _percent(v["ocr"]["share_before"]), _percent(v["ocr"]["same_after"])]
        for name, v in sets.items()
    ]
