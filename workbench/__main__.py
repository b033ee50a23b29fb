"""``python -m workbench``: the command line of ``cli.py``."""

from workbench.cli import main

if __name__ == "__main__":
    main()
