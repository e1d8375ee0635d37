"""`accelerate launch -m ldm.train ...` is `ldm train ...` with the processes that the launcher starts."""

import sys

from ldm.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
