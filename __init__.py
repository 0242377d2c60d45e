"""The root of a clone of ChatGym, which is not the package.

A Python started in the folder above a clone named ``chatgym`` imports this file as ``chatgym``. It loads the package
that is installed in its place, or else the one in this clone.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

if __name__ == "chatgym":
    _root = Path(__file__).resolve().parent
    _paths = [path for path in sys.path if Path(path).resolve() != _root.parent]
    _found = [finder.find_spec(__name__, _paths) for finder in sys.meta_path]
    # A namespace package has no loader: some other folder named chatgym.
    _specs = [spec for spec in _found if spec is not None and spec.loader is not None and spec.origin]
    _package = _root / "chatgym"
    _spec = (
        _specs[0]
        if _specs
        else spec_from_file_location(__name__, _package / "__init__.py", submodule_search_locations=[str(_package)])
    )
    assert _spec is not None
    assert _spec.loader is not None
    # The import system returns what stands in sys.modules when this file has run.
    sys.modules[__name__] = module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[__name__])
