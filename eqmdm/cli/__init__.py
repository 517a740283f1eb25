"""The command-line programs, the only code that parses options, prints or plots."""
