#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Starts the client. `pvcd.cluster` lies beside this file in the package, and one folder up in a checkout."""
import os
import sys

sys.path.append(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from pvc.cli import main

if __name__ == "__main__":
    sys.exit(main())
