"""For mkdocs: the reference is generated while the pages are built, so it is always up to date.

Modules come from their docstrings and signatures (`extra.reference` in mkdocs.yml says which), settings from the schema
of a project file, commands from their own parsers.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm beside this file, from any working directory

from ldm.cli import main as cli
from ldm.config import json_schema as schema
from ldm.config import overrides as command_line
from ldm.config.yaml_io import dump

BOUNDS = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}"}
TYPES = {"integer": "integer", "number": "number", "boolean": "true or false", "string": "text", "null": "null"}


def on_config(config):
    """Called by mkdocs once the settings are read: the reference's pages join the nav."""
    section = next(entry for entry in config.nav if "Reference" in entry)
    titles = [*config.extra["reference"], "Settings", "Commands"]
    section["Reference"] = [{title: place_of(title)} for title in titles]
    return config


def on_files(files, config):
    """Called by mkdocs once the files are listed."""
    pages = {title: modules_page(title, modules) for title, modules in config.extra["reference"].items()}
    for title, text in {**pages, "Settings": settings_page(), "Commands": commands_page()}.items():
        files.append(File.generated(config, place_of(title), content=text))
    return files


def place_of(title: str) -> str:
    return f"reference/{title.lower().replace(' ', '-')}.md"


def modules_page(title: str, modules: list[str]) -> str:
    return "\n\n".join([f"# {title}", *(f"::: {module}" for module in modules)]) + "\n"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; bars, line breaks and formula marks in its cells are text."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell(text) for text in line) + " |" for line in lines)


def cell(text: str) -> str:
    for mark, entity in (("|", "&#124;"), ("<", "&lt;"), ("$", "&#36;"), ("*", "&#42;"), ("\n", " ")):
        text = text.replace(mark, entity)
    return text


# ---- settings -------------------------------------------------------------------------------------------------------


def settings_page() -> str:
    document = schema.schema()
    shared = {"properties": document["properties"].copy()}
    parts = {name: shared["properties"].pop(name) for name in ("clip", "vae", "ldm")}
    shared["properties"].pop("extends")
    out = [
        "# Settings",
        "Every setting of a project file, with the allowed values and the default. The shared ones are at the top of "
        "the file or in the block of a stage, where they hold for that stage alone; on the command line each is `--` "
        "and its name within the stage, such as `--optim.lr 2e-4`. `extends: other.yaml` starts from another file.",
        "## Shared",
        *sections(shared, document["$defs"]),
    ]
    for name, block in parts.items():
        definition = document["$defs"][block["$ref"].rsplit("/", 1)[-1]]
        own = {key: value for key, value in definition["properties"].items() if key not in shared["properties"]}
        out += [f"## {name}", block["description"], *sections({"properties": own}, document["$defs"])]
    return "\n\n".join(out) + "\n"


def sections(definition: dict, definitions: dict, path: str = "") -> Iterator[str]:
    """The tables of a section and of those within it, depth first."""
    rows, inner = [], []
    for name, entry in definition["properties"].items():
        if "$ref" in entry:
            inner.append((f"{path}{name}", definitions[entry["$ref"].rsplit("/", 1)[-1]]))
        else:
            default = f"`{shown(entry['default'])}`" if "default" in entry else ""
            rows.append([f"`{path}{name}`", allowed(entry), default, entry.get("description", "")])
    if path:
        yield f"### {path.rstrip('.')}"
        yield cell(definition.get("description", ""))
    if rows:
        yield table(["setting", "allowed", "default", "what it does"], rows)
    for name, below in inner:
        yield from sections(below, definitions, f"{name}.")


def allowed(entry: dict) -> str:
    """A JSON schema as text."""
    if "anyOf" in entry:
        return " or ".join(allowed(each) for each in entry["anyOf"])
    if "const" in entry or "enum" in entry:
        return ", ".join(f"`{shown(value)}`" for value in entry.get("enum", [entry.get("const")]))
    if "prefixItems" in entry:
        return "; ".join(allowed(each) for each in entry["prefixItems"])
    if "items" in entry:
        return f"list of: {allowed(entry['items'])}"
    words = "path" if entry.get("format") == "path" else TYPES[entry["type"]]
    limits = [form.format(shown(entry[bound])) for bound, form in BOUNDS.items() if bound in entry]
    limits += [f"a multiple of {entry['multipleOf']}"] if "multipleOf" in entry else []
    return ", ".join([words, *limits])


def shown(value) -> str:
    """A value as it is written in YAML."""
    if isinstance(value, float):
        return f"{value:g}"
    return dump({"value": value}).strip().partition(": ")[2]


# ---- commands -------------------------------------------------------------------------------------------------------


def commands_page() -> str:
    out = ["# Commands", "The help of every `ldm` command, and the options of the three trainers."]
    for words, parser in parsers(cli.COMMANDS):
        out += [f"## {' '.join(['ldm', *words])}", cell(parser.description or ""), *options_of(parser)]
        out += [cell(parser.epilog)] if parser.epilog else []
    usage = command_line.usage("ldm").split("\n\nsettings")[0].replace("train_ldm.py", "train_STAGE.py")
    out += [
        "## train_clip.py, train_vae.py, train_ldm.py",
        f"```text\n{usage}\n```",
        "The settings are [here](settings.md).",
    ]
    return "\n\n".join(out) + "\n"


def parsers(registry: cli.Registry, above: tuple[str, ...] = ()) -> Iterator[tuple[list[str], argparse.ArgumentParser]]:
    """(words, parser) of every command, groups left out."""
    for name, (place, _) in registry.items():
        words = [*above, name]
        if isinstance(place, dict):
            yield from parsers(place, tuple(words))
            continue
        parser = cli.build_parser(words)
        for word in words:
            parser = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices[word]
        yield words, parser


def options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The usage, and a table of the arguments."""
    usage = parser.format_usage().rstrip().replace("\n" + " " * len("usage: "), "\n").removeprefix("usage: ")
    yield f"```text\n{usage}\n```"
    formatter = parser._get_formatter()
    rows = [
        [f"`{formatter._format_action_invocation(action)}`", formatter._expand_help(action) if action.help else ""]
        for action in parser._actions
        if action.help != argparse.SUPPRESS and "--help" not in action.option_strings
    ]
    if rows:
        yield table(["argument", "meaning"], rows)
