"""Broken and hostile project files and command lines: accepted, or refused in one readable line."""

import copy
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ldm.config.introspection import paths
from ldm.config.loading import load, to_yaml
from ldm.config.overrides import parse
from ldm.config.settings import PARTS
from ldm.config.yaml_io import read
from ldm.utils.assets import shipped_configs
from ldm.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PRESETS = sorted(shipped_configs().glob("*.yaml"))
LONGEST = 2000  # characters of a refusal
CANARY = "canary"
# What people and editors put where something else was meant.
VALUES = (
    "1e-4", "1e-4 ", "no", "off", "yes", "true", "null", "~", "", "-1", "0", "1e400", ".inf", "-.inf", ".nan", "1_000",
    "0x1f", "012", "1:30", "2024-01-01", "'3'", "[]", "[1, 2]", "[[1]]", "{}", "{a: 1}", "9" * 30, "9" * 5000, "1e-400",
    "!!int x", "!!float 1", "!!binary aGk=", "!!set {a}", "!!timestamp 2024-01-01", "*nothing", "&a [*a]", "&a 3",
    f"!!python/object/apply:os.system ['touch {CANARY}']", "!!python/name:os.remove ''", "!custom 3", "|", "> folded",
    '"\\x00"', '"\\ud800"', "'unclosed", "[1, 2", "{a: ", "a: b: c", "@x", "%x", "`x`", "- 1", "\t3", "? 1", "\u6c34",
)  # fmt: skip


def refusal(part: str, path: Path, arguments=()) -> str | None:
    """What is said of a file or a command line; None when it is accepted, and then it survives being written."""
    try:
        settings = parse(part, [str(path), *arguments])[0] if arguments else load(part, path)
    except UserError as error:
        text = " ".join(str(error).split())  # as it is printed
        assert 0 < len(text) <= LONGEST, text
        return text
    again = path.with_name("again.yaml")
    again.write_text(to_yaml(settings), encoding="utf-8")
    assert load(part, again) == settings
    return None


def places(node, here=()):
    """Every (path of keys) in a document, sections and values alike."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield (*here, key)
        yield from places(value, (*here, key))


def parent_of(document: dict, place: tuple) -> dict:
    for key in place[:-1]:
        document = document[key]
    return document


def misspelt(word: str, rng: random.Random) -> str:
    """A slip of one letter, as fingers make them."""
    i = rng.randrange(len(word))
    return rng.choice((word[:i] + word[i + 1 :], word[:i] + word[i] + word[i:], word[:i] + "x" + word[i + 1 :]))


def documents() -> list[dict]:
    """The shipped files with all they extend, and each part's defaults written out."""
    return [read(path) for path in PRESETS] + [yaml.safe_load(to_yaml(kind())) for kind in PARTS.values()]


# ---- the text of a file ------------------------------------------------------------------------------------------


def odd_value(document: dict, rng: random.Random) -> str:
    place = rng.choice(list(places(document)))
    parent_of(document, place)[place[-1]] = "PLACE"
    return yaml.safe_dump(document).replace("PLACE", rng.choice(VALUES), 1)


def exchanged(document: dict, rng: random.Random) -> str:
    """The value or the section of one key under another."""
    one, other = rng.choices(list(places(document)), k=2)
    value = copy.deepcopy(parent_of(document, other)[other[-1]])
    parent_of(document, one)[one[-1]] = value
    return yaml.safe_dump(document)


def given_twice(document: dict, rng: random.Random) -> str:
    lines = yaml.safe_dump(document, default_flow_style=False).splitlines()
    place = rng.randrange(len(lines))
    return "\n".join([*lines[: place + 1], *lines[place:]])


def harmed_text(document: dict, rng: random.Random) -> str:
    text = yaml.safe_dump(document)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(text))
        text = text[:place] + rng.choice("\t\n :-{}[]&*!|>'\"%@#,?\x00\x07\ufeff\u2028\u6c34a9") + text[place + 1 :]
    return text


def harmed_bytes(document: dict, rng: random.Random) -> bytes:
    data = bytearray(yaml.safe_dump(document).encode())
    for _ in range(rng.randint(1, 6)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


MUTATIONS = (odd_value, odd_value, odd_value, exchanged, given_twice, harmed_text, harmed_bytes)


def test_fuzzed_files_are_accepted_or_refused_in_one_line(tmp_path, monkeypatch, trials, survived):
    monkeypatch.chdir(tmp_path)
    rng, sound, path = random.Random(1), documents(), tmp_path / "mine.yaml"
    count = trials(250, 2500)
    refused = 0
    for trial in range(count):
        changed = rng.choice(MUTATIONS)(copy.deepcopy(rng.choice(sound)), rng)
        path.write_bytes(changed if isinstance(changed, bytes) else changed.encode("utf-8", "surrogatepass"))
        start = time.process_time()
        told = refusal(("clip", "vae", "ldm")[trial % 3], path)
        assert time.process_time() - start < 10
        refused += told is not None
        assert told is None or told.startswith(str(path)), told
    assert refused > count / 2
    assert {entry.name for entry in tmp_path.iterdir()} <= {"mine.yaml", "again.yaml"}  # no canary
    survived("fuzzed config file", count)


def test_every_misspelt_key_is_refused_with_the_right_name(tmp_path, trials, survived):
    """100% of unknown keys: each key of each file misspelt, in the block where it stands."""
    rng, sound, path = random.Random(2), documents(), tmp_path / "mine.yaml"
    count, named = trials(120, 1200), 0
    for _ in range(count):
        document = copy.deepcopy(rng.choice(sound))
        place = rng.choice(list(places(document)))
        section, slip = parent_of(document, place), misspelt(place[-1], rng)
        if slip in section or len(slip) < 2:
            slip = f"{place[-1]}x"
        section[slip] = section.pop(place[-1])
        path.write_text(yaml.safe_dump(document))
        told = refusal(rng.choice(list(PARTS)), path)
        assert told and f"{slip}: unknown key" in told, (place, slip, told)
        named += f"did you mean '{place[-1]}'" in told
    assert named > 0.9 * count  # one slip in three letters may be too much of the word
    survived("misspelt config key", count)


def test_fuzzed_command_lines_are_accepted_or_refused_in_one_line(tmp_path, monkeypatch, capsys, trials, survived):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text("")
    rng, count = random.Random(3), trials(12, 150)
    refused = 0
    for trial in range(count):
        part = ("clip", "vae", "ldm")[trial % 3]
        arguments = []
        for _ in range(rng.randint(1, 3)):
            name = rng.choice([name for name, _ in paths(PARTS[part])])
            name = rng.choice((name, name, name.replace("_", "-"), misspelt(name, rng), name.rpartition(".")[2]))
            value = rng.choice(VALUES).replace("\x00", "")
            arguments += rng.choice(([f"--{name}", value], [f"--{name}={value}"], [f"--{name}"], [value]))
        refused += refusal(part, path, arguments) is not None
    assert refused > count / 2
    assert capsys.readouterr() == ("", "") and not (tmp_path / CANARY).exists()
    survived("fuzzed command line", count)


# ---- files that are made to harm -----------------------------------------------------------------------------------


def laughs(levels: int) -> str:
    """Aliases of aliases: ten times as much with each line."""
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


def merged_laughs(levels: int) -> str:
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, levels)]
    return "\n".join(lines)


HOSTILE = {
    "aliases": (laughs(12), "aliases"),
    "merged aliases": (merged_laughs(12), "aliases"),
    "deep flow": ("seed: " + "[" * 20_000 + "]" * 20_000, "not a usable YAML file|not valid YAML"),
    "deep sections": ("".join(f"{' ' * i}a:\n" for i in range(700)), "not a usable YAML file|not valid YAML|unknown"),
    "one long line": ("seed: " + "1" * 3_000_000, "more than 262144 bytes"),
    "many keys": ("".join(f"k{i}: 1\n" for i in range(3000)), "and 2995 more"),
    "python object": (f"name: !!python/object/apply:os.system ['touch {CANARY}']", "not valid YAML"),
    "python module": ("name: !!python/module:antigravity ''", "not valid YAML"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "not valid YAML"),
    "absolute extends": ("extends: /etc/passwd", "not valid YAML|key: value"),
    "extends a folder": ("extends: .", "cannot be read"),
    "extends a device": ("extends: /dev/zero", "not an ordinary file"),
    "extends with NUL": ('extends: "a\\0b"', "must be the name of one YAML file"),
    "extends far out": ("extends: ../../../../../../nowhere/x.yaml", "no such config file"),
    "extends a long name": (f"extends: {'x' * 5000}", "must be the name of one YAML file"),
    "a long key": (f"? {'x' * 100_000}\n: 1", "unknown key"),
    "a long key within": (f"train: {{? {'x' * 100_000} : 1}}", "unknown key"),
    "a key of control characters": ('"\\e[31m\\a": 1', "?[31m?: unknown key"),
    "a lone surrogate": ('name: "\\ud800"', "not a usable YAML file"),
    "utf-16": ("seed: 1".encode("utf-16"), "cannot be read as a text file"),
    "binary": (bytes(range(256)) * 20, "cannot be read as a text file"),
    "nul": (b"seed: 1\0", "not valid YAML"),
    "tab": (b"train:\n\tnum_steps: 3\n", "line 2: not valid YAML"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_at_once(name, tmp_path, monkeypatch, survived):
    monkeypatch.chdir(tmp_path)
    content, words = HOSTILE[name]
    path = tmp_path / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = refusal("ldm", path)
    assert told is not None and any(word in told for word in words.split("|")), told
    assert time.process_time() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB
    assert not (tmp_path / CANARY).exists()
    survived("hostile config file", 1)


def test_a_pipe_is_not_waited_for(tmp_path, survived):
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "not an ordinary file" in str(refusal("vae", tmp_path / "pipe.yaml"))
    survived("hostile config file", 1)


def test_bad_files_end_a_real_start_with_one_line_and_code_2(tmp_path, trials, survived):
    scripts, chosen = ("train_clip.py", "train_vae.py", "train_ldm.py"), list(HOSTILE)[: trials(3, len(HOSTILE))]
    for i, name in enumerate(chosen):
        path = tmp_path / "mine.yaml"
        path.write_bytes(HOSTILE[name][0] if isinstance(HOSTILE[name][0], bytes) else HOSTILE[name][0].encode())
        command = [sys.executable, str(ROOT / scripts[i % 3]), str(path)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert after.ru_utime - before.ru_utime < 10
    survived("real start with a hostile config file", len(chosen))
