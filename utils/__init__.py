"""What every room uses and what knows of none. See docs/architecture.md."""

import os

# Read by PyTorch's OpenMP when torch is imported, so said before that. A spinning thread beside any other busy process
# costs a hundredfold: idle ones sleep, but only after some microseconds. What the environment says already goes before
# it; scripts/lib/environment.sh says the same for whatever is run from there.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
