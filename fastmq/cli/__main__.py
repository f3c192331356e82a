"""`python -m fastmq.cli` is `fastmq`."""

import sys

from fastmq.cli import main

sys.exit(main())
