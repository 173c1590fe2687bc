# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The lab of PVC as a library: what `pvclab` and the system tests are made of."""
