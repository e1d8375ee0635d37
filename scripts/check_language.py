"""Count words that are this project's own where the field has a standard term.

`python scripts/check_language.py` prints what is left in the README, the pages, the comments of the presets and the
help of every command, and exits with 1 above the allowed numbers. CONTRIBUTING.md has the glossary for people.
Code between backticks or in blocks is left out, since commands, settings and file names are public and do not change.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the ldm beside this file

DRAW = r"draws?|drew|drawn|drawings?"
WORDS = {  # pattern -> the standard term
    r"pictures?": "image",
    DRAW: "generate, sample, render",
    r"judges?|judged|judgements?|judging": "classifier, scored, prediction",
    r"told": "conditioned on, receives, reported",
    r"obeys?|obeyed|obedience": "prompt adherence, accuracy",
    r"goes on|go on|going on|went on": "resumes, continues",
    r"dealt out|dealing out|deals?": "randomly permuted, chance level",
    r"anew": "again, rebuilt",
    r"(?:leads?|leading|led) away": "negative prompt",
    r"whole": "complete, valid",
    r"shares?": "fraction, proportion",
    r"kinds?": "type",
    r"parts?": "stage, component, fraction",
    r"places?": "position, path",
    r"faults?": "error, failure",
    r"verbs?": "editing operation",
    r"walk(?:s|ed|ing)?": "denoising loop, trajectory",
    r"text states|states": "prompt embeddings",
    r"averaged weights|averages on": "EMA weights",
    r"stock": "standard",
    r"towers?": "text encoder, image encoder",
    r"sheets?": "image grid",
    r"(?-i:films?)": "animation",
    r"spoil(?:s|t|ed)?|yardsticks?": "corrupt, reference range",
    r"mend(?:s|ed|ing)?": "fix",
    r"laws?": "distribution, formula",
    r"rooms?": "package, module",
    r"vetted|foreign|strangers?": "validated, untrusted, third-party",
    r"sealed|drafted|telling": "checksummed, atomic",
    r"by heart": "memorize, overfit",
    r"weigh(?:s|ed|ing)?": "weight",
    r"inks?|grounds?|lean(?:s|ing)?": "foreground colour, background, slant",
}
KEPT = {  # phrase -> why it stays
    r"draws? (?:a )?random|(?:drawn|draws?) at random": "random numbers are drawn",
    r"fault injection": "the name of the method",
    r"two towers": "of CLIP, as in the literature",
    r"part of": "ordinary English, no stage or component is meant",
    r"state|stateless": "a training state, a scheduler's state",
    r"random walk": "the stochastic process",
    r"takes? place": "ordinary English",
    r"on a (?:white|black|grey) ground": "captions of the digits data set",
    r"(?:right|left)-leaning": "captions of the digits data set",
    r"in place": "without a copy",
    r"share links?": "gradio's name for them",
    r"whole numbers?": "integers",
}
ALLOWED = {  # file -> pattern -> how many; anything not here is 0
    "docs/ideas/05-denoiser.md": {DRAW: 3},  # random times and noise
    "docs/ideas/06-reverse.md": {DRAW: 2},  # random noise
    "docs/use/app.md": {DRAW: 1},  # the name of a tab
    "configs/glyphs-lora.yaml": {"pictures?": 1},  # an argument of a script
    "models/digits/README.md": {r"inks?|grounds?|lean(?:s|ing)?": 1},  # the name of a metric on disk
}
HELP_ALLOWED = 7  # in the help of all commands and trainers together

FENCED = re.compile(r"^```.*?^```", re.M | re.S)
OPTION = re.compile(r"--[\w.-]+|^usage: .*?\n\n", re.S)  # names, and how a command is called
CODE = re.compile(
    r"^>.*?$|src=\S+|`[^`\n]+`|\]\([^)\s]+\)|\$\$.*?\$\$|\$[^$\n]+\$|<!--.*?-->|^---$.*?^---$", re.S | re.M
)
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "THIRD_PARTY.md",
    "configs/*.md",
    "models/**/*.md",
)


def prose(markdown: str) -> str:
    """Markdown without code, formulas, addresses, quotations and front matter."""
    return CODE.sub(" ", FENCED.sub(" ", markdown))


def comments(yaml: str) -> str:
    return "\n".join(re.findall(r"#(.*)", yaml))


def written() -> Iterator[tuple[str, str]]:
    """(file, prose) of what people read in the repository; the log is history and stays as it was written."""
    pages = [path for pattern in PAGES for path in ROOT.glob(pattern)]
    pages += [path for path in (ROOT / "docs").rglob("*.md") if path.name != "log.md"]
    yield from ((str(path.relative_to(ROOT)), prose(path.read_text(encoding="utf-8"))) for path in sorted(pages))
    for path in (ROOT / "docs").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        yield str(path.relative_to(ROOT)), prose(text)
    for path in sorted([*(ROOT / "configs").glob("*.yaml"), ROOT / "mkdocs.yml"]):
        yield str(path.relative_to(ROOT)), comments(path.read_text(encoding="utf-8"))


def options_left_out(text: str) -> str:
    return prose(OPTION.sub(" ", text))


def helps() -> Iterator[tuple[str, str]]:
    """(command, what its --help says) of every command and of the trainers, their settings included."""
    from docs_reference import parsers

    from ldm.cli import main as cli
    from ldm.config.overrides import usage

    yield "ldm", options_left_out(cli.build_parser([]).format_help())
    for words, parser in parsers(cli.COMMANDS):
        yield f"ldm {' '.join(words)}", options_left_out(parser.format_help())
    for stage in ("clip", "vae", "ldm"):
        yield f"train_{stage}.py", options_left_out(usage(stage))


def count(text: str) -> Counter:
    """How often each pattern occurs as a word, kept phrases left out."""
    text = re.sub("|".join(rf"\b(?:{phrase})\b" for phrase in KEPT), " ", text, flags=re.I)
    found = {pattern: len(re.findall(rf"\b(?:{pattern})\b", text, re.I)) for pattern in WORDS}
    return Counter({pattern: number for pattern, number in found.items() if number})


def excess(name: str, counts: Counter) -> list[str]:
    """One line for each pattern that occurs more often in a file than it may."""
    allowed = ALLOWED.get(name, {})
    return [
        f"{name}: {pattern!r} {number} times, {allowed.get(pattern, 0)} allowed; say: {WORDS[pattern]}"
        for pattern, number in counts.items()
        if number > allowed.get(pattern, 0)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="print every count, allowed or not")
    args = parser.parse_args()
    pages, commands = ({name: count(text) for name, text in source()} for source in (written, helps))
    if args.all:
        for name, counts in [*pages.items(), *commands.items()]:
            print(f"{name}: {counts.total()}  {dict(counts.most_common())}")
        print(f"pages {sum(c.total() for c in pages.values())}, help {sum(c.total() for c in commands.values())}")
    wrong = [line for name, counts in pages.items() for line in excess(name, counts)]
    if (total := sum(counts.total() for counts in commands.values())) > HELP_ALLOWED:
        wrong.append(f"--help of all commands: {total} words of the list, {HELP_ALLOWED} allowed")
    print("\n".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
