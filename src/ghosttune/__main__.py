"""`python -m ghosttune` is `ghosttune`."""

from ghosttune.cli.main import main

main()
