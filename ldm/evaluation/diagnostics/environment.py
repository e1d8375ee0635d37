"""`ldm doctor`: is this machine, and this installation, fit to generate images and to train? One line per finding.

With a run (`ldm doctor RUN`): why does it generate noise? Those checks are in `ldm.evaluation.diagnostics.run`.

Each check returns one `Finding`: ok, warn (works, but slower or with a part missing) or fail (will not work), and for
the latter two what to do about it.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ldm.evaluation.diagnostics.findings import Finding, fail, guarded, ok, warn
from ldm.utils.runtime import usable_cores

GIB = 2**30
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def findings() -> list[Finding]:
    """One finding per check. A check that breaks is itself a failing finding, so that the others still speak."""
    return [guarded(name, check) for name, check in CHECKS.items()]


def check_python() -> Finding:
    version = platform.python_version()
    if sys.prefix == sys.base_prefix:
        return warn(f"{version}, not in a virtual environment", "python3 -m venv .venv keeps it apart")
    return ok(f"{version} in {Path(sys.prefix).name}")


def check_packages() -> Finding:
    """Every core requirement is there and new enough (else fail), and at the version tested (else warn)."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
    from packaging.version import Version

    tested = tested_versions()
    wanted = [Requirement(line) for line in importlib.metadata.requires("ldm") or []]
    unfit, other, count = [], [], 0
    for need in wanted:
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        count += 1
        version = _version_of(need.name)
        if version is None or not need.specifier.contains(version, prereleases=True):
            unfit.append(f"{need.name} {version or 'is missing'} (needs {need.specifier})")
            continue
        pinned = tested.get(canonicalize_name(need.name))
        if pinned and Version(Version(version).public) != Version(pinned):
            other.append(f"{need.name} {version} (tested {pinned})")
    install = 'pip install -c constraints.txt -e "." brings the tested versions'
    if unfit:
        return fail("; ".join(unfit), install)
    if other:
        return warn(f"{count} present; not the tested version: {'; '.join(other)}", install)
    return ok(f"{count} present" + (", all at the tested versions" if tested else ""))


def tested_versions() -> dict[str, str]:
    """Package -> version from constraints.txt (beside the package in a wheel, else in the checkout); {} if neither."""
    from packaging.utils import canonicalize_name

    package = Path(__file__).resolve().parents[2]
    for place in (package / "constraints.txt", package.parent / "constraints.txt"):
        if place.is_file():
            pairs = re.findall(r"^([\w.\-]+)==([^\s;]+)", place.read_text(encoding="utf-8"), flags=re.MULTILINE)
            return {canonicalize_name(name): version for name, version in pairs}
    return {}


def check_torch() -> Finding:
    import torch

    build = (
        f"CUDA {torch.version.cuda}"
        if torch.version.cuda
        else f"ROCm {torch.version.hip}"
        if torch.version.hip
        else "CPU"
    )
    return ok(f"{torch.__version__}, {build} build, SIMD {torch.backends.cpu.get_cpu_capability()}")


def check_threads() -> Finding:
    import psutil
    import torch

    cores = usable_cores()
    policy = os.environ.get("OMP_WAIT_POLICY", "unset")
    load = psutil.getloadavg()[0]
    text = f"{torch.get_num_threads()} of {cores} cores, OMP_WAIT_POLICY={policy}, load {load:.1f}"
    if policy.upper() != "PASSIVE":
        advice = (
            "set OMP_WAIT_POLICY=PASSIVE: waiting threads that spin cost 10 times the speed beside any busy process"
        )
        return warn(text, advice)
    if torch.get_num_threads() > cores:
        return warn(text, f"set OMP_NUM_THREADS={cores}: more threads than cores are slower")
    if load > 1.5 * cores:
        return warn(text, "the machine is busy with other work: expect less speed")
    return ok(text)


def check_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> Finding:
    if not cpuinfo.is_file():
        return ok(f"{platform.machine()} {platform.processor()}".strip())
    listed = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(encoding="utf-8", errors="replace"), flags=re.MULTILINE)
    if listed is None:  # of ARM
        return ok(platform.machine())
    flags = set(listed[1].split())
    text = ", ".join(f"{name} {'yes' if name in flags else 'no'}" for name in CPU_FLAGS)
    if platform.machine() == "x86_64" and "avx2" not in flags:
        return warn(text, "without avx2 sampling takes several times longer")
    return ok(f"{text} (use fp32 on a CPU)")


def check_memory() -> Finding:
    available = available_memory()
    text = f"{available / GIB:.1f} GiB available"
    if available < GIB:
        return fail(text, "sampling needs about 1 GiB: end other programs")
    if available < 4 * GIB:
        return warn(text, "enough to sample; training needs 4 GiB or more, or a smaller batch")
    return ok(text)


def available_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes this process may still use: what the system has left, or what is left of the container's limit."""
    if not meminfo.is_file():
        import psutil

        return psutil.virtual_memory().available
    left = int(re.findall(r"MemAvailable:\s*(\d+) kB", meminfo.read_text(encoding="utf-8"))[0]) * 1024
    try:
        limit, used = ((cgroup / name).read_text(encoding="utf-8").strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return left
    return left if limit == "max" else min(left, int(limit) - int(used))


def check_disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    text = f"{free / GIB:.1f} GiB free here"
    if not os.access(Path.cwd(), os.W_OK):
        return warn(f"{text}, and this folder cannot be written", "run from a folder of your own")
    if free < GIB // 2:
        return fail(text, "checkpoints will not fit: make room, or use --output-dir elsewhere")
    if free < 5 * GIB:
        return warn(text, "a training run with its caches can take 5 GiB")
    return ok(text)


def check_gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        total = torch.cuda.get_device_properties(0).total_memory / GIB
        bf16 = torch.cuda.is_bf16_supported()
        text = f"{len(names)} x {names[0]}, {total:.0f} GiB, bf16 {'yes' if bf16 else 'no'}"
        return ok(text) if bf16 else warn(text, "train with mixed_precision: fp16 or no")
    if getattr(torch.backends, "mps", None) and torch.backends.mps.is_available():
        return ok("Apple GPU (mps)")
    if Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        what = "torch is a CPU build" if not torch.version.cuda else f"torch (CUDA {torch.version.cuda}) cannot use it"
        return warn(f"there is an NVIDIA device, but {what}", "install a torch build for your driver")
    return ok("none; sampling works on the CPU, training is slow there")


def check_torchvision() -> Finding:
    """Which of three cases this is: no torchvision, one whose operators load, or one built for another torch."""
    if importlib.util.find_spec("torchvision") is None:
        return ok('not installed, and not needed (only the "openclip" extra uses it)')
    version = _version_of("torchvision")
    done = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True)
    return torchvision_finding(version or "?", done.returncode, done.stderr)


def torchvision_finding(version: str, returncode: int, stderr: str) -> Finding:
    """The finding for what `import torchvision` did in a process of its own."""
    if returncode == 0:
        return ok(f"{version}, its operators load")
    last = (stderr.strip().splitlines() or ["no message"])[-1]
    if "torchvision::" not in last:
        return fail(f"{version} does not import: {last[:150]}", "pip uninstall torchvision")
    return warn(
        f"{version} is built for another torch: its operators do not load; `ldm` and the trainers work around it",
        "other programs that use transformers, and `accelerate launch`, fail here: start trainers with python or "
        "torchrun, install the torchvision of your torch build, or uninstall torchvision, timm and open_clip_torch",
    )


def check_xformers() -> Finding:
    import torch

    if importlib.util.find_spec("xformers") is None:
        return ok("not installed; torch's own attention is used")
    version = _version_of("xformers")
    if not torch.cuda.is_available():
        return ok(f"{version}, idle: it needs a CUDA device, torch's own attention is used")
    done = subprocess.run([sys.executable, "-c", "import xformers.ops"], capture_output=True, text=True)
    if done.returncode:
        return warn(f"{version} does not import here", "attention: sdpa is as good; or reinstall it")
    return ok(f"{version}, used by attention: auto")


def check_fonts() -> Finding:
    if importlib.util.find_spec("pylopdf_fonts_zh_cn") is None:
        advice = 'only to train on glyphs: pip install -c constraints.txt -e ".[glyphs]", or data.glyphs.font_file'
        return warn("the glyph fonts are not installed", advice)
    return ok(f"pylopdf-fonts-zh-cn {_version_of('pylopdf-fonts-zh-cn')}")


def check_model() -> Finding:
    """The shipped model is there, complete, and has the digest that its ldm.json records."""
    from ldm.pipelines.model_folder import resolve_model
    from ldm.utils.errors import UserError

    try:
        found = resolve_model(None)
    except UserError as error:
        return fail(str(error), "install ldm again, or get a fresh checkout")
    digest, recorded = found.digest(), found.defaults.get("digest")
    if recorded is None:
        return ok(f"{found.defaults.get('name', 'shipped')}, digest {digest} (none recorded)")
    if recorded != digest:
        text = f"its files changed: digest {digest}, recorded {recorded}"
        return fail(text, "install ldm again, or get a fresh checkout")
    return ok(f"{found.defaults.get('name', 'shipped')}, digest {digest} as recorded")


def check_accelerate() -> Finding:
    """The world this process is in, and whether it is the one the launcher's settings ask for."""
    from accelerate import PartialState

    state = PartialState()
    text = f"process {state.process_index + 1} of {state.num_processes} on {state.device}"
    wanted = accelerate_settings().get("num_processes")
    if wanted and "WORLD_SIZE" in os.environ and int(wanted) != state.num_processes:
        advice = "two CPU processes: ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2"
        return warn(f"{text}, but its settings ask for {wanted}", advice)
    return ok(text)


def accelerate_settings() -> dict:
    """What `accelerate config` has saved on this machine; {} if nothing."""
    import yaml
    from accelerate.commands.config.config_args import default_config_file

    path = Path(default_config_file)
    if not path.is_file():
        return {}
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


CHECKS: dict[str, Callable[[], Finding]] = {
    "python": check_python,
    "packages": check_packages,
    "torch": check_torch,
    "threads": check_threads,
    "cpu": check_cpu,
    "memory": check_memory,
    "disk": check_disk,
    "gpu": check_gpu,
    "torchvision": check_torchvision,
    "xformers": check_xformers,
    "fonts": check_fonts,
    "model": check_model,
    "accelerate": check_accelerate,
}
