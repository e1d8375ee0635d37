"""Prove that a change of the code changed no number: what two trees compute, item by item, beside each other.

    python scripts/reference_numbers.py make before --tree ../the-tree-before   # about eight minutes of one core
    python scripts/reference_numbers.py make after                              # --tree: the tree this script lies in
    python scripts/reference_numbers.py compare before after                    # exit code 1 if anything differs

`make` takes the steps of reference_steps.py in their order: commands (`ldm ...`, `train_*.py ...`) and calls of
`load_pipeline(...)`, nothing else of the tree, so that the same script runs on trees whose modules lie elsewhere. All
happens in OUT/work, on one thread of the CPU, in float32. What a step leaves (pictures, weights, losses, metrics,
texts) becomes items: OUT/numbers.json holds the sha256 and a few moments of each, OUT/arrays the values, OUT/work/logs
what was printed. `--only PATTERN ...` makes the steps whose name matches, with those they need; `list` names them all.
A step that fails is an item with an error, and the exit code is 1.

`compare` calls an item equal (to the bit), close (every float within 1e-5 of the other, relative where it is above 1,
and every pixel within one grey level), reworded (that, but a text in it differs), or different. Both sides have to be
made on one machine: other CPUs round otherwise.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from reference_steps import CALLS, PROMPTS, Step, steps, write_inputs

Arrays = dict[str, np.ndarray]  # texts are arrays of dtype U; those that may be reworded are called "words"
TOLERANCE = 1e-5
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "ACCELERATE_USE_CPU": "true",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONHASHSEED": "0",
}
# of JSON objects and lines of a log: what differs from run to run, or names the release
VOLATILE = re.compile(
    r"(.*_)?(seconds|milliseconds|minutes|date|versions?|hardware|watts|memory(_mb)?)"
    r"|(seconds|milliseconds)_per_.*|.*per_second|data_wait"
)
NUMBER = re.compile(r"(?<![0-9a-z_.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
MASKS = {r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d)?)?": "DATE", r"in \d+\.\d s": "in TIME", r"\b0\.[12]\.0\b": "VERSION"}
VERDICTS = ("equal", "close", "reworded", "different")

# ---- how it is made --------------------------------------------------------------------------------------------------


def make(out: Path, tree: Path, only: list[str]) -> int:
    """Take the chosen steps in OUT/work and record what they leave. Returns the exit code."""
    out, tree, table = out.resolve(), tree.resolve(), chosen(only)
    if out.exists():
        sys.exit(f"{out} is there already: name a new folder")
    (out / "work").mkdir(parents=True)
    os.chdir(out / "work")
    os.environ["PYTHONPATH"] = str(tree)
    warm_up(tree)
    write_inputs(tree)
    made_on = {"system": platform.platform(), "cpu": cpu(), "python": platform.python_version()}
    items: dict[str, Any] = {}
    for step in table:
        start = cpu_seconds()
        items |= perform(step, out, tree)
        print(f"{cpu_seconds() - start:6.1f} s of CPU  {step.name}", flush=True)
        (out / "numbers.json").write_text(json.dumps({"made_on": made_on, "items": items}, indent=1))
    wrong = [f"{name}: {item['error']}" for name, item in items.items() if "error" in item]
    print(f"{out / 'numbers.json'}: {len(items)} items, {len(wrong)} errors, {cpu_seconds():.0f} s of CPU")
    print(*wrong, sep="\n", end="\n" * bool(wrong))
    return 1 if wrong else 0


def chosen(only: list[str]) -> list[Step]:
    """The steps whose name matches a pattern, and what they need, in order."""
    table = steps()
    wanted = {step.name for step in table if any(fnmatch(step.name, pattern) for pattern in only)}
    for step in reversed(table):
        wanted |= set(step.needs) if step.name in wanted else set()
    if not wanted:
        sys.exit(f"no step is named like {' or '.join(only)}: see `list`")
    return [step for step in table if step.name in wanted]


def cpu_seconds() -> float:
    """Of this process and all that it waited for."""
    return sum(os.times()[:4])


def warm_up(tree: Path) -> None:
    """Import once what every step would take ten seconds to import; each then runs in a fork of this process."""
    sys.path.insert(0, str(tree))
    import ldm

    if not Path(ldm.__file__).is_relative_to(tree):
        sys.exit(f"ldm came from {ldm.__file__}, not from {tree}")
    ldm.load_pipeline(tree / "models" / "glyphs-fast", engine="torch")
    import accelerate  # noqa: F401
    from transformers import CLIPModel  # noqa: F401


def perform(step: Step, out: Path, tree: Path) -> dict[str, Any]:
    """Run the commands of a step. Returns its items, or one error."""
    log = Path("logs", f"{step.name}.txt")
    log.parent.mkdir(exist_ok=True)
    for command in step.commands:
        if code := run(shlex.split(command.replace("TREE", str(tree))), tree, log):
            return {step.name: {"error": f"exit code {code} of {command}: see {log.absolute()}"}}
    return gather(step, out)


def gather(step: Step, out: Path) -> dict[str, Any]:
    """A fingerprint for each file that a step has left; the content goes to OUT/arrays."""
    missing = [pattern for pattern in step.files if not any(Path().glob(pattern))]
    found: dict[str, Any] = {step.name: {"error": f"it left no {', '.join(missing)}"}} if missing else {}
    for path in sorted({path for pattern in step.files for path in Path().glob(pattern) if path.is_file()}):
        name = f"{step.name}/{path.as_posix()}"
        try:
            arrays = READERS.get(path.suffix, read_text)(path)
            found[name] = fingerprint(arrays)
            keep(out / "arrays" / f"{name}.npz", arrays)
        except Exception as error:
            found[name] = {"error": f"{path} cannot be read: {error!r}"}
    return found


def run(words: list[str], tree: Path, log: Path) -> int:
    """The exit code of a command: `ldm ...`, `train_*.py ...`, one of `OWN`, or `fresh` and one of the former two."""
    if words[0] == "fresh":
        with log.open("a") as stream:
            return subprocess.call([sys.executable, "-m", *words[1:]], stdout=stream, stderr=subprocess.STDOUT)
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code: Any = 70
    try:
        with log.open("a") as stream:
            os.dup2(stream.fileno(), 1), os.dup2(stream.fileno(), 2)
        code = enter(words, tree)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def enter(words: list[str], tree: Path) -> int:
    if words[0] in OWN:
        OWN[words[0]](*words[1:])
        return 0
    sys.argv = words
    if words[0] == "ldm":
        runpy.run_module("ldm", run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(tree / words[0]), run_name="__main__")
    return 0


def draw(model: str, engine: str, output: str, *samplers: str) -> None:
    """Pictures of `CALLS` by a pipeline, the way of one, and what it encodes and decodes, into an .npz file."""
    import torch

    from ldm import load_pipeline

    pipeline, (one, two, _) = load_pipeline(model, engine=engine), PROMPTS.get(model, PROMPTS["runs"])
    found = {}
    for name, changes in (CALLS | {f"sampler-{name}": {"sampler": name} for name in samplers}).items():
        asked = {"prompt": [one, two], "seed": 7, "num_inference_steps": 3, "output_type": "np", **changes}
        found[name] = np.stack([np.asarray(image) for image in pipeline(**asked).images])
    way: list = []
    pipeline(one, seed=1, num_inference_steps=3, callback=lambda step, timestep, latents: way.append(latents.clone()))
    found |= {"way": torch.stack(way).numpy(), "states": pipeline.encode_prompt([one, two, ""]).numpy()}
    latents = pipeline.encode(torch.from_numpy(found["plain"]).permute(0, 3, 1, 2))
    pictures = {"decoded": pipeline.decode(latents), "preview": pipeline.preview(latents)}
    found |= {"encoded": latents.numpy(), **{name: each.detach().numpy() for name, each in pictures.items()}}
    np.savez(output, **found)


def rewind(run: str, copy: str) -> None:
    """A copy of a finished run as if it had been stopped behind its last checkpoint but one."""
    shutil.copytree(run, copy)
    *_, newest = sorted(Path(copy, "checkpoints").glob("step-*"))
    for gone in (Path(copy, "final"), newest):
        shutil.rmtree(gone)


OWN: dict[str, Callable[..., None]] = {"draw": draw, "rewind": rewind}

# ---- what is recorded ------------------------------------------------------------------------------------------------


def read_text(path: Path) -> Arrays:
    """The numbers in it, such as those of an SVG's paths, and the words."""
    text = masked(path.read_text())
    numbers = np.array([float(each) for each in re.findall(NUMBER, text)])
    return {"numbers": numbers, "words": np.array(re.sub(NUMBER, "#", text))}


def read_png(path: Path) -> Arrays:
    from PIL import Image

    with Image.open(path) as image:
        told = {key: json.loads(text) if text.startswith("{") else text for key, text in image.text.items()}
        return {"pixels": np.asarray(image), **numbers_of(told)}


def read_json(path: Path) -> Arrays:
    return numbers_of(json.loads(path.read_text()))


def read_log(path: Path) -> Arrays:
    return numbers_of([json.loads(line) for line in path.read_text().splitlines()])


def read_weights(path: Path) -> Arrays:
    from safetensors.numpy import load_file

    return load_file(path)


def read_arrays(path: Path) -> Arrays:
    loaded = np.load(path)
    return dict(loaded) if path.suffix == ".npz" else {"array": loaded}


def read_parquet(path: Path) -> Arrays:
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(path).to_pylist()
    return {"rows": np.array(json.dumps(rows, default=lambda value: hashlib.sha256(value).hexdigest()))}


def read_graph(path: Path) -> Arrays:
    """Operations and constants of an ONNX file; names in it may tell of the modules that were traced."""
    import onnx

    graph = onnx.load(path).graph
    arrays = {str(i): onnx.numpy_helper.to_array(each) for i, each in enumerate(graph.initializer)}
    return {**arrays, "operations": np.array(" ".join(node.op_type for node in graph.node))}


def read_font(path: Path) -> Arrays:
    from fontTools.ttLib import TTFont

    xml = path.with_suffix(".xml")
    TTFont(path).saveXML(xml)
    return read_text(xml)


READERS: dict[str, Callable[[Path], Arrays]] = {
    ".png": read_png,
    ".json": read_json,
    ".jsonl": read_log,
    ".safetensors": read_weights,
    ".npz": read_arrays,
    ".npy": read_arrays,
    ".onnx": read_graph,
    ".parquet": read_parquet,
    ".ttf": read_font,
}


def masked(text: str) -> str:
    """Without dates, seconds, versions of ours, and the folders that the two sides have each their own of."""
    for folder, name in ((os.environ.get("PYTHONPATH"), "TREE"), (str(Path.cwd()), "WORK")):
        text = text.replace(folder, name) if folder else text
    for pattern, name in MASKS.items():
        text = re.sub(pattern, name, text)
    return text


def numbers_of(value: Any) -> Arrays:
    """A JSON value in the order of its sorted keys: its numbers, its texts, and its structure without them."""
    numbers: list[float] = []
    words: list[str] = []

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(value[key]) for key in sorted(value) if not VOLATILE.fullmatch(key)}
        if isinstance(value, list):
            return [without(each) for each in value]
        if value is None or isinstance(value, bool):
            return value
        (words if isinstance(value, str) else numbers).append(masked(value) if isinstance(value, str) else value)
        return "text" if isinstance(value, str) else "number"

    structure = json.dumps(without(value), ensure_ascii=False, indent=0)
    return {"numbers": np.array(numbers, float), "words": np.array("\n".join(words)), "structure": np.array(structure)}


def fingerprint(arrays: Arrays) -> dict[str, Any]:
    """sha256 of names, types, shapes and bytes, and moments and three projections of all numbers together."""
    total = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        total.update(f"{name} {array.dtype} {array.shape}\0".encode() + np.ascontiguousarray(array).tobytes())
    shapes = [list(array.shape) for array in arrays.values()]
    found: dict[str, Any] = {"sha256": total.hexdigest(), "arrays": len(arrays)}
    found |= {"shape": shapes[0]} if len(arrays) == 1 else {}
    numeric = [array.astype(np.float64).ravel() for _, array in sorted(arrays.items()) if array.dtype.kind != "U"]
    if numeric and (flat := np.concatenate(numeric)).size:
        waves = [np.cos((k + 1) * np.arange(flat.size)) for k in range(3)]
        with np.errstate(invalid="ignore"):  # there are infinities
            found |= {name: float(getattr(flat, name)()) for name in ("mean", "std", "min", "max")}
            found |= {"size": flat.size, "projections": [float(flat @ wave) / flat.size**0.5 for wave in waves]}
    return found


def keep(path: Path, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        np.savez_compressed(stream, **{name.replace("/", "|"): array for name, array in arrays.items()})


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return names[0] if names else platform.processor()


# ---- how two are compared --------------------------------------------------------------------------------------------


class Difference(NamedTuple):
    verdict: str  # one of VERDICTS
    what: str = ""


def compare(one: Path, two: Path) -> int:
    """Print the items that are not equal to the bit. Returns 1 if any is different, else 0."""
    sides = [json.loads((out / "numbers.json").read_text()) for out in (one, two)]
    if sides[0]["made_on"] != sides[1]["made_on"]:
        print(f"note: made on different machines: {sides[0]['made_on']} and {sides[1]['made_on']}")
    names = sorted({*sides[0]["items"], *sides[1]["items"]})
    found = {name: compare_item(name, [one, two], [side["items"].get(name) for side in sides]) for name in names}
    for verdict in VERDICTS[1:]:
        for name, difference in found.items():
            if difference.verdict == verdict:
                print(f"{verdict:10} {name}: {difference.what}")
    counts = {verdict: sum(each.verdict == verdict for each in found.values()) for verdict in VERDICTS}
    print(f"{len(found)} items: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return 1 if counts["different"] else 0


def compare_item(name: str, outs: list[Path], items: list[dict | None]) -> Difference:
    for out, item in zip(outs, items, strict=True):
        if item is None or "error" in item:
            return Difference("different", f"{out}: {item['error'] if item else 'it is missing'}")
    if items[0]["sha256"] == items[1]["sha256"]:
        return Difference("equal")
    return compare_arrays(*(read_arrays(out / "arrays" / f"{name}.npz") for out in outs))


def compare_arrays(one: Arrays, two: Arrays) -> Difference:
    """The worst of all arrays."""
    if one.keys() != two.keys():
        return Difference("different", f"only in one of them: {', '.join(sorted(one.keys() ^ two.keys()))}")
    differences = [compare_array(name, one[name], two[name]) for name in one]
    return max(differences, key=lambda each: VERDICTS.index(each.verdict), default=Difference("equal"))


def compare_array(name: str, one: np.ndarray, two: np.ndarray) -> Difference:
    if one.dtype.kind == two.dtype.kind == "U":
        pairs = zip(str(one).splitlines(), str(two).splitlines(), strict=False)
        first = next((f"{a[:200]!r} and {b[:200]!r}" for a, b in pairs if a != b), "one is longer")
        changed = Difference("reworded" if name == "words" else "different", f"{name}: {first}")
        return Difference("equal") if str(one) == str(two) else changed
    if one.dtype != two.dtype or one.shape != two.shape:
        return Difference("different", f"{name}: {one.dtype} {one.shape} and {two.dtype} {two.shape}")
    if one.tobytes() == two.tobytes():
        return Difference("equal")
    a, b = one.astype(np.float64), two.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0, np.nan_to_num(np.abs(a - b), nan=np.inf))
    limit = 1.0 if one.dtype == np.uint8 else TOLERANCE * np.maximum(1, np.abs(np.nan_to_num(a)))
    what = f"{name}: {np.count_nonzero(apart)} of {apart.size} differ, by at most {apart.max():.3g}"
    return Difference("close" if (apart <= limit).all() else "different", what)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make", help="compute all items into a new folder")
    maker.add_argument("out", type=Path)
    maker.add_argument("--tree", type=Path, default=Path(__file__).resolve().parents[1], help="whose code is run")
    maker.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="names of steps, such as 'draw-*'")
    commands.add_parser("list", help="name the steps")
    comparer = commands.add_parser("compare", help="compare two such folders")
    comparer.add_argument("one", type=Path)
    comparer.add_argument("two", type=Path)
    args = parser.parse_args()
    if args.command == "list":
        print(*(f"{step.name}: {'; '.join(step.commands)}" for step in steps()), sep="\n")
        return 0
    if args.command == "compare":
        return compare(args.one, args.two)
    if not ENVIRONMENT.items() <= os.environ.items():  # libraries and the interpreter read it when they start
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ENVIRONMENT)
    return make(args.out, args.tree, args.only)


if __name__ == "__main__":
    sys.exit(main())
