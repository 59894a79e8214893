"""python -m benchmarks [GROUP...]: all groups, or those named."""

import sys

from benchmarks.run import main


if __name__ == "__main__":
    main(sys.argv[1:])
