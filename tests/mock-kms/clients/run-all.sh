#!/bin/sh
# Every stock client against mock-kms and a real proxy on SoftHSM2. Downloads and builds for minutes the first time.
#
# Needs what ./softhsm-setup.sh installs, python3 with venv, node with npm, and cargo.
set -eu

cd "$(dirname "$0")/../../.."
# The proxy and the token's tool must lie beside the test's program.
cargo build -p xks-proxy -p softhsm-token
exec cargo test -p mock-kms --test kms -- --include-ignored clients::
