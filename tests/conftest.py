from __future__ import annotations

import os

# Before torch is imported: threads that wait must not spin, or tests that share their cores with
# other work take ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
