"""The key-value cache of transformers, whose name changed: `past_key_values` up to 5.23, `cache` from 5.24 on.

Modules of 5.24 accept the former name with a warning, but the arguments that `generate` hands to a loop
(custom_generate) have the new one alone.
"""

from __future__ import annotations

import transformers

CACHE = "cache" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24) else "past_key_values"
"""Name of the argument of a model, of the field of its output, and of the argument that `generate` hands to a loop."""
