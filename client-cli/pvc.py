#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Starts the client. `pvcd.cluster` lies beside this file in the package, and one folder up in a checkout."""
import _signal  # what `signal` is made of: it is there at once
import os
import sys

_signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C while the client loads: no traceback
sys.path.append(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from pvc.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
