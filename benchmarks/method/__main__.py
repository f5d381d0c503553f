"""`python -m benchmarks.method`."""

import sys

from benchmarks.method.run import main

if __name__ == "__main__":
    sys.exit(main())
