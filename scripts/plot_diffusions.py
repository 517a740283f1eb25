"""The program `eqmdm plot-diffusions`; see `--help`."""

from eqmdm.cli.entry import run


if __name__ == "__main__":
    run("plot-diffusions")
