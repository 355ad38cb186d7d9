"""`python -m proxy.cli`: the same as the command `tollkeeper`."""

import sys

from proxy.cli.main import main

sys.exit(main())
