"""`python -m ldm` is the same as `ldm`."""

from ldm.cli.main import main

if __name__ == "__main__":
    main()
