"""The command line: quick to start, loads only what is chosen, and answers slips in one line."""

import argparse
import resource
import subprocess
import sys
import types

import pytest

from ldm.cli import main as cli
from ldm.cli.train_stage import train_stage
from ldm.utils.assets import shipped_configs
from ldm.utils.errors import UserError

HEAVY = ("torch", "diffusers", "transformers", "numpy", "PIL", "pydantic")


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("argv", [[], ["--help"], ["--version"], ["data", "--help"]])
def test_help_and_version_load_no_heavy_library(argv):
    code = f"""
import sys
from ldm.cli.main import main
try:
    main({argv!r})
except SystemExit as stop:
    assert not stop.code, stop.code
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = run_python(code)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr


def test_importing_the_package_loads_no_heavy_library():
    done = run_python(f"import sys, ldm; print(ldm.__version__, [n for n in {HEAVY!r} if n in sys.modules])")
    assert done.stdout.strip().endswith("[]"), done.stderr


def test_the_wait_policy_is_passive_for_every_command():
    done = run_python(
        "import os; os.environ.pop('OMP_WAIT_POLICY', None)\n"
        "from ldm.cli.main import main\n"
        "try: main(['--version'])\n"
        "except SystemExit: print(os.environ['OMP_WAIT_POLICY'])"
    )
    assert done.stdout.split()[-1] == "PASSIVE", done.stderr


def test_help_is_quick():
    """0.1 s of CPU time, where torch alone takes 2: the wall clock would tell of the machine's load."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "ldm", "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.build_parser([]).parse_args(["--help"])
    out = capsys.readouterr().out
    for name, (_, help_line) in cli.COMMANDS.items():
        assert name in out and help_line in out


def test_help_has_every_command_in_a_group_and_examples_that_are_valid():
    grouped = [name for names in cli.GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(cli.COMMANDS)
    for command in cli.EXAMPLES:
        words = command.split()[1:]
        assert hasattr(cli.build_parser(words).parse_args(words), "run")


def test_words_without_quotes_are_explained():
    words = ["generate", "horizontal", "--seed", "3", "stacked", "glyph"]
    with pytest.raises(UserError, match='quotes, such as "one two stacked glyph"'):
        cli.build_parser(words).parse_args(words)
    with pytest.raises(UserError, match="unrecognized arguments: --sead; `ldm"):
        cli.build_parser(["generate", "--sead", "3"]).parse_args(["generate", "--sead", "3"])


def test_runs_are_listed_without_torch(tmp_path):
    (tmp_path / "runs" / "a" / "vae" / "checkpoints").mkdir(parents=True)
    done = run_python(
        "import sys\n"
        "from ldm.cli.main import main\n"
        f"try: main(['runs', 'ls', {str(tmp_path / 'runs')!r}])\n"
        "except SystemExit: print([name for name in ('torch', 'numpy', 'diffusers') if name in sys.modules])"
    )
    assert "checkpoints" in done.stdout and done.stdout.strip().endswith("[]"), done.stdout + done.stderr


FIRST_WORDS = """
import builtins, sys
def first(*words, **how):
    heavy = [name for name in ("torch", "diffusers", "transformers", "datasets", "accelerate") if name in sys.modules]
    sys.stdout.write(f"{words[0]}|{heavy}")
    raise SystemExit(0)
from ldm.utils.terminal import LiveLine
LiveLine.show = lambda self, text, now=False: first(text)
builtins.print = first
from ldm.cli.main import main
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generate", "a", "red", "circle"], "loading the model ..."),
        (["app"], "building the page ..."),
        (["evaluate"], "evaluating the included model"),
        (["train", "images"], "training on images"),
        (["train", "clip", "PROJECT"], "text encoder: PROJECT"),
    ],
)
def test_the_first_line_comes_before_the_heavy_libraries(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    project = str(shipped_configs() / "smoke.yaml")
    words, said = [word.replace("PROJECT", project) for word in words], said.replace("PROJECT", project)
    done = run_python(f"{FIRST_WORDS}main({words!r})")
    text, _, heavy = done.stdout.rpartition("|")
    assert text.startswith(said) and heavy == "[]", done.stdout + done.stderr


def test_a_model_that_is_not_there_is_refused_without_torch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_python(
        "import sys\n"
        "from ldm.cli.main import main\n"
        "try: main(['evaluate', 'nowhere'])\n"
        "except SystemExit as stop: print(stop.code, [name for name in ('torch', 'diffusers') if name in sys.modules])"
    )
    assert done.stderr.startswith("error: there is no folder nowhere") and done.stdout == "2 []\n", done.stderr
    assert not any(tmp_path.iterdir())


def parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """A parser and those of its commands."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [parser, *(inner for group in groups for each in group.choices.values() for inner in parsers(each))]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_no_argument_takes_the_place_of_the_function_that_runs_a_command(name):
    place, _ = cli.COMMANDS[name]
    for argv in [[name], *([name, inner] for inner in place)] if isinstance(place, dict) else [[name]]:
        told = {action.dest for parser in parsers(cli.build_parser(argv)) for action in parser._actions}
        assert "run" not in told


@pytest.mark.parametrize(
    ("typed", "meant"), [("genrate", "generate"), ("docter", "doctor"), ("Export", "export"), ("puhs", "push")]
)
def test_an_unknown_command_suggests_the_nearest(typed, meant):
    with pytest.raises(UserError, match=f"got {typed!r}; did you mean {meant!r}"):
        cli.build_parser([typed]).parse_args([typed])


def test_a_nested_slip_is_answered_too():
    with pytest.raises(UserError, match="did you mean 'glyphs'"):
        cli.build_parser(["data", "glyph"]).parse_args(["data", "glyph"])


def test_a_slip_ends_in_one_line_and_code_2(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["genrate"])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("error: ")


def fake_module(monkeypatch, run):
    """A module with two commands, one of which names its own function, registered in place of the real ones."""

    def add_parser(subparsers):
        first = subparsers.add_parser("first")
        first.add_argument("--count", type=int, default=1)
        subparsers.add_parser("second").set_defaults(run=lambda args: 7)

    module = types.ModuleType("ldm_fake")
    module.add_parser, module.run = add_parser, run
    monkeypatch.setitem(sys.modules, "ldm_fake", module)
    commands = {
        "first": ("ldm_fake", "one"),
        "second": ("ldm_fake", "two"),
        "other": ("ldm_that_is_not_there", "never imported"),
        "group": ({"first": ("ldm_fake", "nested")}, "a group"),
    }
    monkeypatch.setattr(cli, "COMMANDS", commands)


def exit_code(argv) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    return stop.value.code


def test_the_chosen_module_runs_and_its_code_is_returned(monkeypatch):
    seen: list[argparse.Namespace] = []
    fake_module(monkeypatch, lambda args: seen.append(args))
    assert exit_code(["first", "--count", "3"]) == 0
    assert seen[0].count == 3
    assert exit_code(["second"]) == 7
    assert exit_code(["group", "first"]) == 0
    assert exit_code(["first", "--count", "many"]) == 2


def test_a_user_error_is_one_line_and_code_2(monkeypatch, capsys):
    def run(args):
        raise UserError("the folder\nis empty")

    fake_module(monkeypatch, run)
    assert exit_code(["first"]) == 2
    assert capsys.readouterr().err == "error: the folder is empty\n"


@pytest.mark.parametrize("command", [["generate"], ["edit", "weigh"], ["generate", "a", "--sampler"], ["train"]])
def test_bytes_that_are_not_utf_8_are_one_line_and_code_2(command, capsys):
    assert exit_code([*command, "caf\udce9"]) == 2
    told = capsys.readouterr().err
    assert "argument 'caf\\udce9' is not UTF-8 text" in told and told.count("\n") == 1
    with pytest.raises(UserError, match="is not UTF-8 text"):  # what train_vae.py runs
        train_stage("vae", ["configs/digits.yaml", "--data.source", "caf\udce9"])


def test_a_missing_extra_is_named(monkeypatch, capsys):
    def run(args):
        raise ModuleNotFoundError("No module named 'rapidocr'", name="rapidocr.main")

    fake_module(monkeypatch, run)
    assert exit_code(["first"]) == 2
    assert "pip install -c constraints.txt -e '.[eval]'" in capsys.readouterr().err


def test_a_missing_module_that_no_extra_brings_is_a_fault_of_ours(monkeypatch):
    def run(args):
        raise ModuleNotFoundError("No module named 'ldm.nowhere'", name="ldm.nowhere")

    fake_module(monkeypatch, run)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["first"])


def test_a_group_alone_prints_its_help(capsys):
    assert exit_code(["data"]) == 0
    assert "check" in capsys.readouterr().out
