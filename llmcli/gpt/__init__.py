"""The model and how it computes: torch lives here."""

import numpy as np  # noqa: F401 (before torch, whose C code would swallow a Ctrl-C in its import)
