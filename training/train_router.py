"""Train a router offline: the same as ``ensemble train``.

python training/train_router.py --data TABLE --out FOLDER
"""

import sys

from ensemble.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
