"""The program `eqmdm compare-evaluations`; see `--help`."""

from eqmdm.cli.entry import run


if __name__ == "__main__":
    run("compare-evaluations")
