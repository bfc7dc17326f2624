"""``python -m psserver``."""

from psserver.cli import main

raise SystemExit(main())
