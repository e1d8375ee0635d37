"""The `ldm` command: one module for each subcommand."""
