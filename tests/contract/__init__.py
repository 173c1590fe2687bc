# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The same cases on our models and on the real thing: ZooKeeper, libvirt's test driver, ipmi_sim."""
