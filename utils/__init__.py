"""Training loop, checkpoints, randomness, distribution and command line. Used by all packages, imports none of them."""

import os

# Set before importing torch, whose OpenMP reads it then: spin-waiting threads are about 100 times slower next to
# another busy process. With GOMP_SPINCOUNT they sleep after some microseconds. A value from the environment has
# precedence; scripts/lib/environment.sh sets the same.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
