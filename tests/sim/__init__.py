# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The simulator: the product's own decisions on models of ZooKeeper, libvirt, BMCs and time."""
