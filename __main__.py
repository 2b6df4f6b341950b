"""`python -m varax` is the command `varax`."""

import sys

from varax.cli import main

sys.exit(main())
