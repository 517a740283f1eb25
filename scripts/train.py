"""The program `eqmdm train`; see `--help`."""

from eqmdm.cli.entry import run


if __name__ == "__main__":
    run("train")
