"""The command line: one module per verb; tables only here."""
