"""`python -m eqmdm.cli ...` is `eqmdm ...`."""

from .entry import main


if __name__ == "__main__":
    main()
