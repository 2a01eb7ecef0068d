"""The programs, and the modules that they share. See docs/architecture.md."""

import utils  # noqa: F401  before torch: how its threads wait
