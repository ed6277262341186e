"""`python -m sublim_interp` is the `sublim` command."""

from sublim_interp.cli.main import main

if __name__ == "__main__":
    main()
