"""The entry point of `python -m eqmdm.cli`, which is the program `eqmdm`."""

from .entry import main


if __name__ == "__main__":
    main()
