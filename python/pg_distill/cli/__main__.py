"""``python -m pg_distill.cli`` is pg-distill."""

import sys

from pg_distill.cli.main import main

sys.exit(main())
