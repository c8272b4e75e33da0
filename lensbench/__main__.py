"""`python -m lensbench`."""

import os
import sys

# Python puts the current folder first; a file there that is called like a library would be imported in its place. What
# a user names there (`my_lens:MyLens`) is still found: `lensbench.utils.imports` looks there last.
if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):  # noqa: PTH109 - pathlib is not imported yet
    del sys.path[0]

from lensbench.cli import main

main()
