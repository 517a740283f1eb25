"""The program `eqmdm report`; see `--help`."""

from eqmdm.cli.entry import run


if __name__ == "__main__":
    run("report")
