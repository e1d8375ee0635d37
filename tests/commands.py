"""Commands as users type them, each in a process of its own that must succeed."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


def run(*command, cwd, **environment) -> str:
    """The output of a command that must succeed."""
    values = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=values, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def train(part, config, cwd, *overrides, processes=1) -> str:
    """`accelerate launch train_<part>.py CONFIG`, as the README says; plain, quicker python with 0 processes."""
    several = ["--multi_gpu", "--num_processes", processes] if processes > 1 else ["--num_processes", 1]
    launch = [BIN / "accelerate", "launch", "--main_process_port", 0, *several] if processes else [sys.executable]
    return run(*launch, ROOT / f"train_{part}.py", config, *overrides, cwd=cwd, ACCELERATE_USE_CPU="true")
