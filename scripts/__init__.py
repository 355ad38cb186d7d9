"""Programs that make committed files; each has `--check`, which `make lint` runs."""
