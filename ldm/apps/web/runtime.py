"""The files of onnxruntime-web, an npm package: from a folder, from node_modules, or once by npm into the cache."""

import hashlib
import importlib.util
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from ldm.utils.atomic_files import exclusive_lock, readable_io_errors, staged
from ldm.utils.errors import UserError

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"  # the tested version
CPU = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")  # what the page needs of it: module, WebAssembly
GPU = ("ort.jspi.bundle.min.mjs", "ort-wasm-simd-threaded.jspi.wasm")  # what it also takes, for WebGPU
FILES = {  # sha256 in that version
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    "ort.jspi.bundle.min.mjs": "07ec090355e11b342c95436db54da2d0c2bd5b1d319745bfd3337e6bdcf170ac",
    "ort-wasm-simd-threaded.jspi.wasm": "a54c76f86b0f0d9572380cf1c6292a7b3903716ffcbcd6b0e5c7050bf430eb93",
}
LICENCES = ("LICENSE", "ThirdPartyNotices.txt")  # the npm package leaves them out; the Python package has the same
CACHE = Path("cache") / f"{PACKAGE}-{VERSION}"


def find_runtime(named: str | None = None) -> Path:
    """The folder that holds `CPU`, and `GPU` if it is complete.

    Args:
        named: the package, its dist/, or a node_modules with it; None = look for node_modules here and above, then in
            the cache, then ask npm.

    Raises: UserError saying where it was looked for.
    """
    if named is not None:
        found = _within(Path(named).expanduser())
        if found is None:
            raise UserError(f"--runtime {named} does not hold {' and '.join(CPU)}: name a folder of {PACKAGE}")
        return found
    return nearby_runtime() or _fetched()


def nearby_runtime() -> Path | None:
    """The folder that holds `CPU` in a node_modules here or above, or in the cache; None if there is none."""
    here = Path.cwd()
    near = (_within(place / "node_modules") for place in (here, *here.parents))
    return next((place for place in near if place), None) or _within(CACHE)


def present(folder: Path) -> list[str]:
    """Names of the files that a page takes from a folder of `find_runtime`."""
    return [name for names in (CPU, GPU) if all((folder / name).is_file() for name in names) for name in names]


def licences() -> list[Path]:
    """The licence of ONNX Runtime and of what it is made of. Raises: UserError if they are not here."""
    spec = importlib.util.find_spec("onnxruntime")
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    found = [place / name for place in places for name in LICENCES if (place / name).is_file()]
    if len(found) < len(LICENCES):
        raise UserError(f"onnxruntime is not installed with its {' and '.join(LICENCES)}: pip install onnxruntime")
    return found


def _within(folder: Path) -> Path | None:
    inside = (folder, folder / "dist", folder / PACKAGE / "dist")
    return next((place for place in inside if all((place / name).is_file() for name in CPU)), None)


def _fetched() -> Path:
    """The cache, filled by npm. Raises: UserError if npm is missing, has no network or brings something else."""
    otherwise = (
        f"`npm install {PACKAGE}@{VERSION}` somewhere and name its node_modules by --runtime (looked here and above "
        f"for node_modules, and in {CACHE})"
    )
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"{PACKAGE} is not here, and neither is npm to fetch it: {otherwise}")
    print(f"fetching {PACKAGE} {VERSION} with npm into {CACHE}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "--silent", f"{PACKAGE}@{VERSION}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        packed = next(Path(folder).glob("*.tgz"), None)
        if done.returncode or packed is None:
            raise UserError(f"{PACKAGE} is not here, and npm could not fetch it ({_reason(done.stderr)}): {otherwise}")
        with (
            readable_io_errors(CACHE, "make room"),
            exclusive_lock(CACHE.absolute()),
            staged(CACHE.absolute()) as stage,
        ):
            _unpack(packed, stage)
    return CACHE


def _unpack(packed: Path, stage: Path) -> None:
    with tarfile.open(packed) as archive:
        for name, digest in FILES.items():
            try:
                member = archive.extractfile(f"package/dist/{name}")
            except KeyError:
                member = None
            content = member.read() if member else b""
            if hashlib.sha256(content).hexdigest() != digest:
                raise UserError(f"what npm brought as {PACKAGE} {VERSION} has another {name} than the tested one")
            (stage / name).write_bytes(content)


def _reason(said: str) -> str:
    """The telling line of npm's complaints."""
    lines = [line.removeprefix("npm error ").strip() for line in said.splitlines() if "error" in line.lower()]
    return next((line for line in lines if not line.startswith("code ")), "it said nothing")
