"""``python -m psworker``."""

from psworker.cli import main

raise SystemExit(main())
