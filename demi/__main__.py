"""`python -m demi`: the command line where the `demi` script is not on the path."""

import sys

from demi.cli.main import main

sys.exit(main())
