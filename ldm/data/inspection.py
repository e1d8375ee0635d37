"""`ldm data check PATH`: what training would find in a folder, parquet file or Hub data set. It only reads."""

import json
import re
from collections import Counter, defaultdict
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.config.settings import DataOptions
    from ldm.formats.records import Sample, Source
    from ldm.utils.image_sizes import Size

ELONGATED = 2.0  # an image's aspect ratio over its size's, beyond which a crop loses more than half of it
COMMON_WORDS = 15


def inspect(source: "Source", options: "DataOptions", text_length: int, chosen: bool = True) -> dict[str, Any]:
    """The report as plain data (the keys are those of `--json`); `text_length` is what a caption may have of tokens.

    Unless `options.channels` was `chosen`, channels are as the images have them.
    """
    from ldm.data.image_files.dataset import divide
    from ldm.formats.decode_workers import map_pictures
    from ldm.formats.decoding import ImageError
    from ldm.formats.layout import has_repeats
    from ldm.utils.terminal import counted

    samples = source.samples
    skipped, looks, used = [], [], []
    seen = map_pictures(source, "look", channels=4 if chosen and options.channels == 4 else 3)
    for index, look in counted(seen, "checking", len(samples)):
        if isinstance(look, ImageError):
            skipped.append({"id": samples[index].id, "reason": str(look)})
        else:
            used.append(samples[index])
            looks.append(json.loads(look))
    splits = divide(used, options.files.validation_fraction) if used else {}
    return {
        "source": options.source,
        "resolution": options.resolution,
        "channels": options.channels if chosen else 1 if all(look["grey"] for look in looks) else 3,
        "channels_chosen": chosen,
        "notes": source.notes,
        "repeats": has_repeats([sample.id for sample in samples]),
        "pictures": len(samples),
        "allowed_bad_fraction": options.files.max_bad_fraction,
        "skipped": skipped,
        "splits": {name: len(rows) for name, rows in splits.items()},
        "held_out": not set(splits.get("train", ())) & set(splits.get("validation", ())),
        **_pictures(used, looks, options.sizes),
        "duplicates": _duplicates(used, looks, splits),
        "captions": {"from": source.captions_from, **_captions(used, text_length)},
    }


def _pictures(samples: "list[Sample]", looks: list[dict], buckets: "list[Size]") -> dict[str, Any]:
    """Sizes, types, and suspicious images; `buckets`: the sizes that images are brought to."""
    from ldm.utils.image_sizes import nearest_size

    chosen = [buckets[nearest_size(buckets, (look["height"], look["width"]))] for look in looks]

    def those(test) -> list[str]:
        rows = zip(samples, looks, chosen, strict=True)
        return [sample.id for sample, look, size in rows if test(look["height"], look["width"], *size)]

    def elongated(height: int, width: int, its_height: int, its_width: int) -> bool:
        shapes = height * its_width, width * its_height
        return max(shapes) > ELONGATED * min(shapes)

    widths, heights = [look["width"] for look in looks], [look["height"] for look in looks]
    sizes = {}
    if looks:
        sizes = {name: [f(widths), f(heights)] for name, f in (("least", min), ("median", median), ("most", max))}
    return {
        "sizes": sizes,
        "common_sizes": Counter(f"{w}x{h}" for w, h in zip(widths, heights, strict=True)).most_common(5),
        "buckets": Counter(f"{w}x{h}" for h, w in chosen).most_common() if len(buckets) > 1 else [],
        "too_small": those(lambda height, width, *size: height < size[0] or width < size[1]),
        "elongated": those(elongated),
        "formats": dict(Counter(look["format"] for look in looks).most_common()),
        "modes": dict(Counter(look["mode"] for look in looks).most_common()),
        "grey": sum(look["grey"] for look in looks),
        "transparent": sum(look["transparent"] for look in looks),
        "blank": [sample.id for sample, look in zip(samples, looks, strict=True) if look["blank"]],
    }


def _duplicates(samples: "list[Sample]", looks: list[dict], splits: dict[str, list[int]]) -> list[dict[str, Any]]:
    """Groups of images with the same pixels, and whether their captions or their splits differ."""
    groups = defaultdict(list)
    for place, look in enumerate(looks):
        groups[look["digest"]].append(place)
    split_of = {place: name for name, places in splits.items() for place in places}
    return [
        {
            "ids": [samples[place].id for place in places],
            "captions_differ": len({samples[place].captions for place in places}) > 1,
            "across_splits": len({split_of[place] for place in places}) > 1,
        }
        for places in groups.values()
        if len(places) > 1
    ]


def _captions(samples: "list[Sample]", text_length: int) -> dict[str, Any]:
    """How many, how long, which words, and which captions several images share."""
    owners = defaultdict(list)
    for sample in samples:
        for caption in sample.captions:
            owners[caption].append(sample.id)
    words = {caption: re.findall(r"\w+", caption.lower()) for caption in owners}
    lengths = [len(words[caption]) for caption, ids in owners.items() for _ in ids]
    common: Counter = Counter()
    for caption, ids in owners.items():
        for word in words[caption]:
            common[word] += len(ids)
    shared = [{"caption": caption, "ids": ids} for caption, ids in owners.items() if len(ids) > 1]
    return {
        "total": len(lengths),
        "distinct": len(owners),
        "without": [sample.id for sample in samples if not sample.captions],
        "words": {"least": min(lengths), "median": median(lengths), "most": max(lengths)} if lengths else {},
        "text_length": text_length,
        # a word is a token or more, and two tokens are marks: these are cut for certain
        "cut": [caption for caption in owners if len(words[caption]) > text_length - 2],
        "longest": max(owners, key=lambda caption: len(words[caption]), default=""),
        "common_words": common.most_common(COMMON_WORDS),
        "shared": sorted(shared, key=lambda entry: -len(entry["ids"])),
    }


def report_lines(report: dict[str, Any], most: int) -> list[str]:
    """The report for a terminal, each list cut to `most` rows."""
    from ldm.formats.records import printable

    total, skipped = report["pictures"], report["skipped"]
    usable = total - len(skipped)
    divided = divided_text(report)
    lines = [f"{report['source']}: {total} images, {usable} usable" + (f" ({divided})" if divided else "")]
    lines += [f"note: {note}" for note in report["notes"]]
    lines += _listed(
        f"left out: {len(skipped)} ({len(skipped) / total:.1%}; data.files.max_bad_fraction allows "
        f"{report['allowed_bad_fraction']:.1%})",
        [f"{entry['id']}: {entry['reason']}" for entry in skipped],
        most,
    )
    if usable:
        lines += _picture_lines(report, usable, most) + _caption_lines(report["captions"], usable, most)
    return [printable(line) for line in lines]


def divided_text(report: dict[str, Any]) -> str:
    """'95 train, 5 validation', and that these are trained on too where none are held out."""
    divided = ", ".join(f"{count} {name}" for name, count in report["splits"].items())
    return divided + ("" if report["held_out"] else "; none is held out: validation images are trained on")


def transparency_text(report: dict[str, Any]) -> str:
    """What becomes of transparency, where most images have some or it was asked for; else ""."""
    count, usable = report["transparent"], report["pictures"] - len(report["skipped"])
    if report["channels"] == 4:
        return f"transparency: kept (data.channels is 4); {count} of {usable} images have some"
    if 2 * count <= usable:
        return ""
    kept = "data.channels 4 keeps it, else data.files.background fills it"
    return f"transparency: {count} of {usable} images have some; {kept}"


def _picture_lines(report: dict[str, Any], usable: int, most: int) -> list[str]:
    from ldm.utils.image_sizes import size_of

    duplicates, buckets = report["duplicates"], report["buckets"]
    height, width = size_of(report["resolution"])
    size = "their bucket" if buckets else f"{height} pixels" if height == width else f"{width}x{height} pixels"
    sizes = ", ".join(f"{name} {w:g}x{h:g}" for name, (w, h) in report["sizes"].items())
    lines = [f"sizes (each side by itself): {sizes}; commonest {_counts(report['common_sizes'])}"]
    lines.append(f"formats: {_counts(report['formats'].items())}; modes: {_counts(report['modes'].items())}")
    if not report["channels_chosen"]:
        lines.append(f"colour: data.channels {report['channels']}, as the images have them")
    elif report["channels"] == 1 and report["grey"] < usable:
        lines.append(f"colour: {usable - report['grey']} images lose it (data.channels is 1)")
    elif report["channels"] == 3 and report["grey"] == usable:
        lines.append("colour: none has any; data.channels 1 would do")
    lines += filter(None, [transparency_text(report)])
    small, long, blank = report["too_small"], report["elongated"], report["blank"]
    lines += [f"buckets (width x height): {_counts(buckets)}"] if buckets else []
    lines += _listed(f"smaller than {size}, to be enlarged: {len(small)}", small, most)
    wide = "wide" if height == width and not buckets else "their size is"
    lines += _listed(f"more than {ELONGATED:g} times as long as {wide}, or the reverse: {len(long)}", long, most)
    lines += _listed(f"one colour all over: {len(blank)}", blank, most)
    remarks = {"captions_differ": "captions differ", "across_splits": "in more than one split"}
    groups = [
        " = ".join(group["ids"]) + "".join(f" ({words})" for key, words in remarks.items() if group[key])
        for group in duplicates
    ]
    return lines + _listed(f"groups of equal images: {len(groups)}", groups, most)


def _caption_lines(captions: dict[str, Any], usable: int, most: int) -> list[str]:
    if not captions["total"]:
        return ["captions: none (the model would be unconditional)"]
    words, without, shared = captions["words"], captions["without"], captions["shared"]
    lines = [
        f"captions: {captions['total']}, {captions['distinct']} of them distinct, "
        f"for {usable - len(without)} images, from {' and '.join(captions['from'])}; "
        f"words: least {words['least']}, median {words['median']:g}, most {words['most']}",
        f"commonest words: {_counts(captions['common_words'])}",
    ]
    cut = [f"{caption[:80]}..." for caption in captions["cut"]]
    lines += _listed(
        f"captions that lose their end, having more words than clip.model.context_length {captions['text_length']} "
        f"holds: at least {len(cut)}",
        cut,
        most,
    )
    lines += _listed(f"images without a caption: {len(without)}", without, most)
    rows = [f"{len(entry['ids'])}x {entry['caption'][:80]}" for entry in shared]
    return lines + _listed(f"captions shared by several images: {len(shared)}", rows, most)


def _listed(title: str, rows: list[str], most: int) -> list[str]:
    """A title and its first rows; nothing at all for an empty list."""
    if not rows:
        return []
    more = [f"  ... and {len(rows) - most} more"] if len(rows) > most else []
    return [title, *(f"  {row}" for row in rows[:most]), *more]


def _counts(pairs) -> str:
    return ", ".join(f"{name} ({count})" for name, count in pairs)
