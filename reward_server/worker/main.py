"""What a worker's interpreter runs: ``python main.py <socket file descriptor>``.

The interpreter may be one in which this package is not installed, and where it must not drag along the packages
that happen to lie beside it. So the package is loaded from its own folder, and nothing is added to the path.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

MINIMUM = (3, 10)


def load_package() -> None:
    """Import ``reward_server`` from the folder above this file."""
    folder = Path(__file__).resolve().parents[1]
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != folder / "worker"]
    spec = importlib.util.spec_from_file_location(
        "reward_server", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {folder}")
    package = importlib.util.module_from_spec(spec)
    sys.modules["reward_server"] = package
    spec.loader.exec_module(package)


if __name__ == "__main__":
    if sys.version_info < MINIMUM:
        sys.exit(f"a worker needs Python {MINIMUM[0]}.{MINIMUM[1]} or newer; {sys.executable} is {sys.version}")
    load_package()
    from reward_server.worker.child import run

    run(int(sys.argv[1]))
