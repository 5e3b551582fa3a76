"""`python -m lofi` is the `lofi` command; torchrun starts it this way."""

from lofi.cli import main

main()
