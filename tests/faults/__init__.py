"""Kills, cuts and bad luck on a real Kubernetes. ``rig`` and ``sample`` are the tools, ``test_*`` what pytest finds."""

from pathlib import Path

import pytest

_MODULES = [path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("__init__", "conftest")]
pytest.register_assert_rewrite(*(f"{__name__}.{name}" for name in _MODULES))
