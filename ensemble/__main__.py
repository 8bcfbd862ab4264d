"""``python -m ensemble``: the command line."""

from ensemble.cli import main

if __name__ == "__main__":
    main()
