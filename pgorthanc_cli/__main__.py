"""`python -m pgorthanc_cli` is `pgorthanc`."""

from pgorthanc_cli.cli import main

if __name__ == "__main__":
    main(prog_name="pgorthanc")
