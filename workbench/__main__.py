"""``python -m workbench``: the command line of ``cli/main.py``."""

from workbench.cli.main import main

if __name__ == "__main__":
    main()
