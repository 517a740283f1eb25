"""The programs: they alone parse a command line, print and plot."""
