"""The program `eqmdm read-profile`; see `--help`."""

from eqmdm.cli.entry import run


if __name__ == "__main__":
    run("read-profile")
