"""`python -m moesaic`, and what torchrun starts."""

from moesaic.cli.main import main

main()
