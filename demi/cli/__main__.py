"""`python -m demi.cli`, for machines where scripts are not on the path."""

import sys

from demi.cli.main import main

sys.exit(main())
