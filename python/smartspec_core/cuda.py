# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""The CUDA operations on their own, over tensors of any framework that speaks DLPack."""

from ._core.cuda import *  # noqa: F403
