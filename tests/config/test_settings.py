"""Settings: what is written is read back, and whatever is wrong is told in one line."""

import functools
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ldm.config.introspection import nearest, paths
from ldm.config.json_schema import schema, text
from ldm.config.loading import load, part_of, run_dir, to_yaml
from ldm.config.overrides import Invocation, parse, parse_overrides, parse_project, usage
from ldm.config.settings import PARTS, DataOptions, NoiseOptions, RunSettings, SamplingOptions
from ldm.config.yaml_io import merge
from ldm.utils.assets import shipped_configs
from ldm.utils.errors import UserError

PRESETS = sorted(shipped_configs().glob("*.yaml"))
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def write(tmp_path):
    def write(content: str, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return path

    return write


def fault(part: str, path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(part, path, parse_overrides(part, overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "setting",
    [
        *("data.source", "data.cache_dir", "data.glyphs.font_file", "output_dir"),
        *("vae", "text.source", "alignment.source", "start.model", "distill.teacher"),
    ],
)
def test_home_may_be_named_by_its_sign_wherever_a_place_is_set(setting, write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    value = "~/mine"
    for key in reversed(setting.split(".")):
        value = {key: value}
    given = parse_overrides("ldm", [f"--{setting}", "~/mine"])
    for found in (load("ldm", write(yaml.dump({"ldm": value}))), load("ldm", write(""), given)):
        for key in setting.split("."):
            found = getattr(found, key)
        assert str(found) == f"{tmp_path}/mine"


def test_home_may_be_named_by_its_sign_where_a_run_goes_on(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse("vae", [str(write("")), "--resume", "~"])[1].resume == str(tmp_path)


# ---- layers --------------------------------------------------------------------------------------------------------


def test_an_empty_file_means_the_defaults_and_its_own_name(write):
    for part, kind in PARTS.items():
        assert load(part, write("")) == kind(name="mine")


def test_the_block_wins_over_shared_keys_and_only_for_its_part(write):
    path = write("optim: {lr: 1e-4, warmup_steps: 7}\nldm: {optim: {lr: 2e-4}}\n")
    assert (load("ldm", path).optim.lr, load("ldm", path).optim.warmup_steps) == (2e-4, 7)
    assert load("vae", path).optim.lr == 1e-4


def test_the_command_line_wins_over_all(write):
    path = write("optim: {lr: 1e-4}\nldm: {optim: {lr: 2e-4}}\n")
    assert load("ldm", path, parse_overrides("ldm", ["--optim.lr", "3e-4"])).optim.lr == 3e-4


def test_extends_is_relative_chains_and_replaces_lists_whole(write, tmp_path):
    (tmp_path / "base").mkdir()
    write("train: {num_steps: 5, batch_size: 8}\nvae: {model: {block_out_channels: [8, 16]}}\n", "base/one.yaml")
    write("extends: one.yaml\ntrain: {num_steps: 6}\n", "base/two.yaml")
    path = write("extends: base/two.yaml\nvae: {model: {block_out_channels: [24]}}\n")
    got = load("vae", path)
    assert (got.train.num_steps, got.train.batch_size, got.model.block_out_channels) == (6, 8, [24])
    assert got.name == "mine"


def test_a_section_whose_lines_are_all_commented_out_is_empty(write):
    path = write("optim:\n  # lr: 1\nldm:\ndata:\n  glyphs:\n")
    assert load("ldm", path) == PARTS["ldm"](name="mine")


def test_yaml_scalars_are_what_they_look_like(write):
    path = write("name: 'no'\nseed: 010\noptim: {lr: 2e-4, weight_decay: 1}\ntrain: {mixed_precision: no}\n")
    got = load("clip", path)
    assert (got.name, got.seed, got.optim.lr, got.train.mixed_precision) == ("no", 10, 2e-4, "no")
    assert isinstance(got.optim.weight_decay, float)


def test_anchors_and_merge_keys_work(write):
    path = write("vae: {optim: &slow {lr: 1e-5}}\nldm: {optim: {<<: *slow, warmup_steps: 3}}\n")
    assert (load("ldm", path).optim.lr, load("ldm", path).optim.warmup_steps) == (1e-5, 3)


FLAT = st.dictionaries(st.sampled_from("abc"), st.integers())


@given(base=FLAT, over=FLAT)
def test_merge_of_flat_sections_is_a_dictionary_update(base, over):
    assert merge({"x": base}, {"x": over}) == {"x": base | over}
    assert merge({"x": base}, {"x": None}) == {"x": base}


def test_run_dir_is_named_by_run_and_part_unless_given(write):
    assert run_dir(load("vae", write("")), "vae") == Path("runs/mine/vae")
    assert run_dir(load("vae", write(""), {"output_dir": "else/where"}), "vae") == Path("else/where")


# ---- round trip ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_loads_and_survives_print_config(preset, part, write):
    got = load(part, preset)
    assert part_of(got) == part
    assert load(part, write(to_yaml(got))) == got


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_helped_by_its_editor(preset):
    assert preset.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=schema.json\n")


def test_a_resolved_file_reads_the_same_in_yaml_1_1(write):
    got = load("vae", write("train: {mixed_precision: no}\nname: 2e-4x\noptim: {lr: 1e-5}\n"))
    assert yaml.safe_load(to_yaml(got))["train"]["mixed_precision"] == "no"
    assert yaml.safe_load(to_yaml(got))["optim"]["lr"] == 1e-5


# Some values of every kind a setting can have; all are legal wherever they are drawn for.
OVERRIDES = {
    "name": st.text("abc019.-_e", min_size=1, max_size=8).filter(lambda s: not s.startswith("-")),
    "output_dir": st.sampled_from([None, "runs/x", "2024", "no"]),
    "seed": st.integers(0, 2**31 - 1),
    "data.channels": st.sampled_from([1, 3]),
    "data.resolution": st.integers(2, 128).map(lambda n: 8 * n),
    "data.files.caption_column": st.sampled_from(["", "text", "null", "1e3", "yes"]),
    "data.files.horizontal_flip": st.booleans(),
    "data.glyphs.styles": st.lists(st.sampled_from(["hei", "song"]), min_size=1),
    "optim.lr": st.floats(1e-12, 1e3),
    "optim.betas": st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2),  # a momentum of 1 would never forget
    "train.num_steps": st.integers(1, 10**9),
    "train.mixed_precision": st.sampled_from(["auto", "no", "bf16", "fp16"]),
    "sampling.prompts": st.lists(st.text("ab: #'\"水,-", max_size=6).map(lambda s: "p" + s), max_size=3),
    "model.block_out_channels": st.lists(st.sampled_from([32, 64, 96]), min_size=3, max_size=5),
}
CHOICES = st.fixed_dictionaries({}, optional=OVERRIDES)


def as_arguments(choice: dict) -> list[str]:
    arguments = []
    for path, value in choice.items():
        if isinstance(value, bool):
            owner, _, name = path.rpartition(".")
            arguments.append(f"--{path}" if value else f"--{owner}.no-{name}")
        elif isinstance(value, list | tuple):
            arguments += [f"--{path}", *map(str, value)]
        else:
            arguments.append(f"--{path}={value}")
    return arguments


def value_at(tree, path: str):
    return functools.reduce(getattr, path.split("."), tree)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(choice=CHOICES)
def test_any_valid_override_arrives_and_survives_the_file(choice, write):
    got = load("ldm", write(""), parse_overrides("ldm", as_arguments(choice)))
    for path, value in choice.items():
        expected = Path(value) if path == "output_dir" and value is not None else value
        assert value_at(got, path) == expected
    assert load("ldm", write(to_yaml(got), "again.yaml")) == got


def test_spellings_of_an_override():
    want = {"train": {"num_steps": 10}, "optim": {"lr": 2e-4}, "model": {"block_out_channels": [32, 64]}}
    for steps, rate in itertools.product(
        (["--train.num-steps", "10"], ["--train.num_steps=10"]), (["--optim.lr=2e-4"], ["--optim.lr", "0.0002"])
    ):
        got = parse_overrides("vae", [*steps, *rate, "--model.block_out_channels", "32", "64"])
        assert {key: value for key, value in got.items() if value} | {"data": None} == want | {"data": None}


@pytest.mark.parametrize(
    "said",
    [["32", "64"], ["[32, 64]"], ["[32,64]"], ["[32,", "64]"], ["32,64"], ["32,", "64"], ["[32 64]"]],
    ids=" ".join,
)
def test_numbers_of_a_list_are_taken_as_words_as_in_yaml_and_with_commas(said):
    given, others = parse_project(["--ldm.model.block_out_channels", *said, "photos"], {})
    assert (given, others) == ({"ldm": {"model": {"block_out_channels": [32, 64]}}}, ["photos"])


def test_two_sides_and_choices_are_taken_as_in_yaml_and_texts_keep_brackets_and_commas():
    assert parse_overrides("vae", ["--data.resolution", "[32, 64]"]) == {"data": {"resolution": [32, 64]}}
    assert parse_overrides("vae", ["--train.report_to", "[none]"]) == {"train": {"report_to": ["none"]}}
    assert parse_overrides("ldm", ["--optim.betas", ".5", "9e-1"]) == {"optim": {"betas": [0.5, 0.9]}}
    said = ["[a], b", "c"]
    assert parse_overrides("ldm", ["--sampling.prompts", *said]) == {"sampling": {"prompts": said}}


# ---- faults --------------------------------------------------------------------------------------------------------

SECTIONS = sorted({(part, path.rpartition(".")[0]) for part, kind in PARTS.items() for path, _ in paths(kind)})


@pytest.mark.parametrize("part, owner", SECTIONS, ids="/".join)
def test_a_typo_in_any_section_is_told_with_its_path_and_the_right_name(part, owner, write):
    kind = PARTS[part]
    name = next(p.rpartition(".")[2] for p, _ in paths(kind) if p.rpartition(".")[0] == owner)
    typo = name[:-1] + "_" + name[-1]
    nested = functools.reduce(lambda inner, key: {key: inner}, reversed([*filter(None, owner.split(".")), typo]), 1)
    for other in PARTS:  # also when another part is trained
        message = fault(other, write(yaml.dump({part: nested})))
        assert f"mine.yaml: {part}.{owner}{'.' if owner else ''}{typo}: unknown key; did you mean '{name}'?" in message
        assert "allowed: " in message
    option = f"{owner}.{typo}".lstrip(".")
    assert f"did you mean --{owner}.{name}?".replace("--.", "--") in fault(part, write(""), f"--{option}", "1")


@pytest.mark.parametrize(
    "content, words",
    [
        ("ldm: {optim: {learning_rate: 1}}", "ldm.optim.learning_rate: unknown key; did you mean 'lr'? allowed: "),
        ("epochs: 3", "epochs: unknown key; allowed: name,"),
        ("train: {batch: 3}", "train.batch: unknown key; did you mean 'batch_size'?"),
        ("lr: 3", "lr: unknown key; did you mean 'optim.lr'?"),
        ("model: {width: 8}", "model: belongs inside the block of a part: clip.model or vae.model or ldm.model"),
        ("optim: {lr: -1}", "optim.lr: must be greater than 0, got -1"),
        ("optim: {lr: .inf}", "optim.lr: must be a finite number"),
        ("optim: {lr: '1'}", "optim.lr: must be a valid number, got '1'"),
        ("optim: {betas: [0.9]}", "optim.betas: has too few values, got [0.9]"),
        ("optim: {betas: [0.9, 2]}", "optim.betas.1: must be less than 1, got 2"),
        ("train: {num_steps: true}", "train.num_steps: must be a valid integer, got True"),
        ("train: {num_steps: 0}", "train.num_steps: must be greater than or equal to 1, got 0"),
        ("train: {mixed_precision: fp8}", "train.mixed_precision: must be 'auto', 'no', 'bf16' or 'fp16', got 'fp8'"),
        ("data: {resolution: 60}", "data.resolution: must be a multiple of 8, got 60"),
        ("data: {resolution: [64, 60]}", "data.resolution.1: must be a multiple of 8, got 60"),
        ("data: {resolution: '64'}", "data.resolution: must be a valid integer, got '64'"),
        ("data: {resolution: [64]}", "data.resolution: has too few values, got"),
        ("data: {files: {bucket_step: 48}}", "data: resolution 64 must be a multiple of files.bucket_step 48"),
        ("data: {glyphs: {styles: [kai]}}", "data.glyphs.styles.0: must be 'hei' or 'song', got 'kai'"),
        ("data: 3", "data: must be a section of 'key: value' lines, got 3"),
        ("vae: 3", "vae: must be a section of 'key: value' lines, got 3"),
        ("vae: {model: {norm_num_groups: 7}}", "vae.model: block_out_channels [32, 64, 128] must be multiples"),
        ("optim: {lr: 1}\noptim: {lr: 2}", "line 2: not valid YAML: 'optim' is given twice"),
        ("optim: {lr: 1, lr: 1}", "'lr' is given twice"),
        ("optim: [", "not valid YAML"),
        ("- 1", "must hold 'key: value' lines, got list"),
        ("name: !!python/object:os.system {}", "not valid YAML: could not determine a constructor"),
        ("data: &a {glyphs: *a}", "Circular"),
        ("extends: 3", "extends: must be the name of one YAML file, got 3"),
        ("extends: none.yaml", "none.yaml: no such config file (extended by"),
    ],
)  # fmt: skip
def test_faults_in_a_file(content, words, write):
    assert words in fault("ldm", write(content))


def test_several_faults_are_told_at_once_and_five_at_most(write):
    message = fault("ldm", write("optim: {lr: -1}\ntrain: {num_steps: 0}\nvae: {crop: -1}\n"))
    assert all(words in message for words in ("optim.lr:", "train.num_steps:", "vae.crop:"))
    assert message.endswith("got -1")
    assert fault("ldm", write("\n".join(f"x{i}: 1" for i in range(9)))).endswith("; and 4 more")


def test_a_circle_of_extends_is_shown(write):
    write("extends: b.yaml", "a.yaml")
    write("extends: a.yaml", "b.yaml")
    assert "(mine.yaml -> a.yaml -> b.yaml -> a.yaml)" in fault("vae", write("extends: a.yaml"))
    assert "(self.yaml -> self.yaml)" in fault("vae", write("extends: self.yaml", "self.yaml"))


def test_a_missing_file_names_the_nearest_presets(tmp_path):
    assert "did you mean" in fault("ldm", tmp_path / "glyps.yaml")
    assert "glyphs.yaml" in fault("ldm", tmp_path / "glyps.yaml")
    assert "cannot be read" in fault("ldm", tmp_path)


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00\x01")
    assert "cannot be read as a text file" in fault("ldm", tmp_path / "x.yaml")


def test_a_resolution_is_one_number_or_two():
    for words, expected in (
        (["--data.resolution", "32"], 32),
        (["--data.resolution", "32", "64"], (32, 64)),
        (["--data.resolution", "64", "64"], 64),  # a square, whichever way it is written
    ):
        settings = parse("ldm", [str(shipped_configs() / "smoke.yaml"), *words])[0]
        assert settings.data.resolution == expected
        assert settings.data.size == (expected if isinstance(expected, tuple) else (expected, expected))
    given, others = parse_project(["--data.resolution", "32", "photos"], {})
    assert (given, others) == ({"data": {"resolution": 32}}, ["photos"])


def test_buckets_are_sizes_around_the_resolution():
    data = DataOptions(resolution=64, files={"bucket_step": 16})
    assert data.sizes == [(32, 128), (48, 80), (64, 64), (80, 48), (128, 32)]
    assert DataOptions(resolution=[32, 64]).sizes == [(32, 64)]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--optim.lr", "abc"], "--optim.lr: must be a number, got 'abc'"),
        (["--model.block_out_channels", "[32, x]"], "--model.block_out_channels: must be a whole number, got 'x'"),
        (["--optim.lr", "-1"], "--optim.lr: must be greater than 0, got -1.0"),
        (["--optim.lr"], "Missing value for argument '--optim.lr'"),
        (["--optim.betas", "0.9"], "'--optim.betas'. Expected 2 values"),
        (["--data.channels", "2"], "invalid choice '2' for argument '--data.channels'"),
        (["--learning-rate", "1"], "--learning-rate: unknown option"),
        (["--lr", "1"], "--lr: unknown option; did you mean --optim.lr?"),
        (["stray"], "Unrecognized options: stray"),
        (["--train.compile", "maybe"], "Unrecognized options: maybe"),
    ],
)
def test_faults_on_the_command_line(arguments, words, write):
    assert words in fault("ldm", write(""), *arguments)


@given(names=st.lists(st.sampled_from([p.rsplit(".")[-1] for p, _ in paths(RunSettings)]), min_size=1), data=st.data())
def test_nearest_finds_a_name_from_itself_and_from_one_slip(names, data):
    name = data.draw(st.sampled_from(names))
    assert nearest(name, names) == name
    assert nearest(name.upper().replace("_", "-"), names) == name


# ---- the command line as a user meets it ---------------------------------------------------------------------------


def start(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, timeout=1200)


def test_a_good_start_says_what_this_invocation_wants_and_needs_no_torch():
    code = "import sys; from ldm.config.overrides import parse; print(parse('ldm')[1], 'torch' in sys.modules)"
    done = start("-c", code, "configs/smoke.yaml", "--resume", "never", "--dry-run", "--train.num-steps", "3")
    assert done.stdout.strip() == f"{Invocation('never', (), True, Path('configs/smoke.yaml'))} False", done.stderr


@pytest.mark.parametrize(
    "script, arguments",
    [
        ("train_clip.py", []),
        ("train_vae.py", ["configs/none.yaml"]),
        ("train_ldm.py", ["configs/smoke.yaml", "--optim.lrr", "1"]),
        ("train_clip.py", ["configs/smoke.yaml", "--optim.lr", "x"]),
        ("train_vae.py", ["configs/smoke.yaml", "--train.num_steps", "0"]),
        ("train_ldm.py", ["configs/smoke.yaml", "--resume", "nowhere"]),
    ],
)
def test_a_bad_start_is_one_line_and_code_2(script, arguments):
    done = start(script, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


def test_print_config_writes_a_file_that_loads_to_the_same_settings(write, capsys):
    preset = shipped_configs() / "smoke.yaml"
    with pytest.raises(SystemExit) as caught:
        parse("clip", [str(preset), "--print-config", "--seed", "5"])
    assert caught.value.code == 0
    assert load("clip", write(capsys.readouterr().out)) == load("clip", preset, {"seed": 5})


@pytest.mark.parametrize("part", PARTS)
def test_help_names_every_setting_and_fits_a_screen_or_two(part, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(part, ["--help"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0 and shown.count("\n") <= 150  # a line for each setting
    assert all(f"--{path} " in shown.replace("--output-dir", "--output_dir") for path, _ in paths(PARTS[part]))
    assert "Global batch size" in shown
    assert "--train.batch_size 16" in usage("ldm", shipped_configs() / "smoke.yaml")


def test_settings_may_stand_before_the_file_too():
    got, invocation = parse("vae", ["--optim.lr", "0.5", str(shipped_configs() / "smoke.yaml"), "--resume=never"])
    assert (got.optim.lr, invocation.resume) == (0.5, "never")


# ---- registries ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, name", [(NoiseOptions, "process"), (SamplingOptions, "sampler")])
def test_a_name_that_is_in_no_registry_is_refused_with_those_that_are(options, name):
    with pytest.raises(ValidationError, match="Input should be 'flow', 'linear'.* or 'karras'|'ddpm'.* or 'unipc'"):
        options(**{name: "nothing"})


def test_settings_need_no_torch_until_they_name_something_unusual():
    code = "import sys; from ldm.config import settings as s; s.LdmSettings(); print('torch' in sys.modules)"
    code += "; s.SamplingOptions(sampler='unipc'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr


# ---- schema --------------------------------------------------------------------------------------------------------


def test_the_committed_schema_is_current():
    message = "run: python -m ldm.config.json_schema > configs/schema.json"
    assert (shipped_configs() / "schema.json").read_text(encoding="utf-8") == text(), message


def test_the_schema_knows_every_setting_with_its_range_and_comment():
    whole = schema()
    assert set(whole["properties"]) == {*RunSettings.model_fields, *PARTS, "extends"}
    for part, kind in PARTS.items():
        for path, _ in paths(kind):
            entry = whole
            for key in (part, *path.split(".")):
                entry = _resolve(whole, entry)["properties"][key]
            assert "default" in entry, path
    batch = whole["$defs"]["TrainOptions"]["properties"]["batch_size"]
    assert (batch["minimum"], batch["description"][:16]) == (1, "Global batch siz")
    assert all(d["additionalProperties"] is False for d in whole["$defs"].values())
    json.dumps(whole)


def _resolve(whole: dict, node: dict) -> dict:
    return whole["$defs"][node["$ref"].rsplit("/", 1)[-1]] if "$ref" in node else node


@pytest.mark.parametrize("said", ["--text.train", "--text.train true", "--text.train=True"])
def test_a_switch_can_be_said_with_its_value_or_without(said):
    got = parse_overrides("ldm", [*said.split(), "--optim.lr", "2e-4"])
    assert got["text"] == {"train": True} and got["optim"] == {"lr": 2e-4}


@pytest.mark.parametrize("said", ["--model.no-pooled-text", "--model.pooled-text false", "--model.pooled_text=False"])
def test_a_switch_can_be_turned_off_in_both_ways(said):
    got = parse_overrides("ldm", [*said.split(), "--mlp.width", "32"])
    assert got["model"] == {"pooled_text": False} and got["mlp"] == {"width": 32}
