#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Starts the daemon and returns its exit status; no logic. (The package `pvcd` beside this file wins over its name.)"""
import sys

from pvcd.daemon import main

if __name__ == "__main__":
    sys.exit(main())
