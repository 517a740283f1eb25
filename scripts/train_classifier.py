"""The program `eqmdm train-classifier`; see `--help`."""

from eqmdm.cli.entry import run


if __name__ == "__main__":
    run("train-classifier")
