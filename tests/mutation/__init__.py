# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Mutation testing: small changes to the product's code, each of which some test must notice. `tests/mutate` runs it."""
