"""These tests need PyTorch and diffusers (the extra `parity`); without them none is collected."""

import importlib.util

if any(importlib.util.find_spec(name) is None for name in ("torch", "diffusers")):
    collect_ignore_glob = ["test_*.py"]
