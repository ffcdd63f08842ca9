"""Entry point of `python -m resdeploy`, which also works in a clone that is not installed."""

from resdeploy.cli import main

if __name__ == "__main__":
    main()
