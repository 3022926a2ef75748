"""`python -m demi.cli`, for machines where scripts are not on the PATH."""

import sys

from demi.cli.main import main

sys.exit(main())
