"""One module per job: its settings, whose docstrings are the `--help`."""
