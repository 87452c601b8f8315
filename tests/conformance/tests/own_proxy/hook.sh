#!/bin/sh
#
# Changes a running xks-proxy, or its key manager, as the conformance suite asks.
#
#   hook.sh PID ADMIN FOLDER CONTROL ACTION
#
# FOLDER holds xks-proxy.toml and, named after each action, what the action puts in place of it, or of CONTROL, the control
# file of pkcs11-fault. ADMIN is the address of the operator's listener.

set -eu
pid=$1 admin=$2 folder=$3 control=$4 action=$5

# Whole or not at all.
replace() { cp "$folder/$action" "$1.new" && mv -f "$1.new" "$1"; }

reloads() { curl -sf "http://$admin/metrics" | grep '^xks_config_reloads_total' | sort; }

is_ready() { curl -sf "http://$admin/readyz" >/dev/null; }

# Until it is so, for half a minute at most.
wait_until() {
  tries=0
  until "$@"; do
    tries=$((tries + 1))
    [ "$tries" -lt 600 ] || { echo "$action: waited in vain: $*" >&2; exit 1; }
    sleep 0.05
  done
}

has_reloaded() { [ "$(reloads)" != "$before" ]; }

case $action in
  credentials-*)
    before=$(reloads)
    replace "$folder/xks-proxy.toml"
    kill -HUP "$pid"
    wait_until has_reloaded
    ;;
  hsm-healthy)
    replace "$control"
    wait_until is_ready
    ;;
  hsm-*) replace "$control" ;;
  *)
    echo "unknown action: $action" >&2
    exit 2
    ;;
esac
