"""`python -m semiseg`."""

from semiseg.cli import main

main()
