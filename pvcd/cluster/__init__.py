# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The cluster's contract: keys, words, records, rules and the ZooKeeper client; shipped in both packages."""
