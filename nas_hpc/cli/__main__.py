"""``python -m nas_hpc.cli`` is ``nas-hpc``."""

import sys

from nas_hpc.cli.main import main

sys.exit(main())
