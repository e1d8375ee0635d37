"""Commands as users type them, each in a process of its own that must succeed.

A process that begins with nothing spends most of its time on importing torch; `forked` ones share what we imported.
"""

import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from forked import Child

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


def run(*command, cwd, **environment) -> str:
    """The output of a command that must succeed."""
    values = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=values, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def forked(script: Path | None, *words, cwd, code: int = 0) -> str:
    """What a script of ours, or `ldm` for None, says with these words in a child of this process; its exit code."""
    import torch
    from accelerate.state import AcceleratorState
    from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401  what the children share
    from transformers import CLIPModel, CLIPTextModel  # noqa: F401

    from ldm.cli.main import main

    def work():
        torch.set_num_threads(1)  # a child has none of its parent's threads
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ["ACCELERATE_USE_CPU"] = "true"
        os.chdir(cwd)
        sys.argv = [str(script or "ldm"), *map(str, words)]
        runpy.run_path(str(script), run_name="__main__") if script else main()

    with tempfile.TemporaryDirectory() as folder:
        child = Child(work, Path(folder) / "said")
        ended = child.wait()
        assert ended == code, f"{script} {words}: {ended}\n{child.said()[-6000:]}"
        return child.said()


def train(part, config, cwd, *overrides, processes=1) -> str:
    """`accelerate launch train_<part>.py CONFIG`, as the README says; quicker and without it, forked, 0 processes.

    The launcher of one process is forked, and what it launches begins with nothing.
    """
    script, launcher = ROOT / f"train_{part}.py", BIN / "accelerate"
    if not processes:
        return forked(script, config, *overrides, cwd=cwd)
    launch = ["launch", "--main_process_port", 0, "--num_processes", processes]
    if processes == 1:
        return forked(launcher, *launch, script, config, *overrides, cwd=cwd)
    return run(launcher, *launch, "--multi_gpu", script, config, *overrides, cwd=cwd, ACCELERATE_USE_CPU="true")
