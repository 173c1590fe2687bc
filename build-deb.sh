#!/bin/bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
# Builds pvc-daemon and pvc-client; the packages are left in the parent directory of this checkout.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"

missing=()
for package in dpkg-dev debhelper dh-python fakeroot python3-click; do
    dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing+=("$package")
done
if [ "${#missing[@]}" -gt 0 ]; then
    echo "build-deb.sh: these packages are missing: ${missing[*]}; install them with: apt-get install ${missing[*]}" >&2
    exit 1
fi

version=$(dpkg-parsechangelog -S Version)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! dpkg-buildpackage -us -uc -b -tc >"$log" 2>&1; then
    cat "$log" >&2
    exit 1
fi
for package in pvc-daemon pvc-client; do
    readlink -f "../${package}_${version}_all.deb"
done
