# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""SmartSpec's native core: the engine and its parts, each usable alone.

Importing it loads one shared library and nothing else.
"""

from ._core import *  # noqa: F403
from ._core import __version__ as __version__
