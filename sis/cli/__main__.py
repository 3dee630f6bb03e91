"""`python -m sis.cli` is `sis`."""

from sis.cli.main import main

if __name__ == "__main__":
    main()
