"""`accelerate launch -m ldm.train ...` is `ldm train ...` with the processes that the launcher starts."""

import sys

from ldm.cli.main import main
from ldm.training.cpu_processes import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    main(["train", *sys.argv[1:]])
