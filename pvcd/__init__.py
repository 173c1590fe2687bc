# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""pvcd, the PVC daemon; `pvcd.cluster` is what it shares with the client."""
