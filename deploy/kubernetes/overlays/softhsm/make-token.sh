#!/bin/sh
#
# Makes a SoftHSM2 token with a health key and the key "demo", unless it is there.
#
#   make-token.sh CONFIG_FOLDER TOKEN_FOLDER

set -eu

config=$1
folder=$2
export SOFTHSM2_CONF="$config/softhsm2.conf"

if [ -e "$folder/is-made" ]; then exit 0; fi
# What an interrupted run left is half a token.
rm -rf "$folder/tokens"
mkdir -p "$folder/tokens"
softhsm2-util --init-token --free --label xks --so-pin "$(cat "$config/so-pin")" --pin "$(cat "$config/pin")"
xks-proxy keys create --config "$config/xks-proxy.toml" --token softhsm --label xks-health
xks-proxy keys create --config "$config/xks-proxy.toml" --store demo --key demo
: >"$folder/is-made"
