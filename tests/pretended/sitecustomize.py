"""On PYTHONPATH: every Python process pretends, with as many GPUs as FAKE_GPUS says."""

import os

if os.environ.get("FAKE_GPUS"):
    import pretend  # noqa: F401
