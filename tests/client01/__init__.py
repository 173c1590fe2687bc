# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""A client that knows only 0.1's keys and words: what an operator's old tools do to a cluster of ours."""
