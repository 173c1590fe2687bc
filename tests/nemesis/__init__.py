# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Real faults in random seeded order on a lab's nodes, with orders in between; guests bear witness, a checker judges the history."""
