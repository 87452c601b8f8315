#!/bin/sh
#
# Rotates the audit log of the proxy whose processes it sees: moves the file away once it is large, has the proxy go on in
# a new one by SIGHUP, and compresses the old one. It deletes nothing: what ships the records away does that.
#
#   AUDIT_LOG       the file
#   MAX_BYTES       rotate from this size on
#   INTERVAL_SECS   between two looks; 0 looks once and ends
#   PROC            where the processes are, /proc unless it is set

set -eu

# The processes that serve. Helpers, and commands that somebody calls in the container, have the same name; SIGHUP would end those.
proxies() {
  for process in "${PROC:-/proc}"/[0-9]*; do
    if [ "$(cat "$process/comm" 2>/dev/null || true)" = xks-proxy ] &&
      [ "$(tr '\0' '\n' 2>/dev/null <"$process/cmdline" | sed -n 2p)" = serve ]; then
      printf '%s\n' "${process##*/}"
    fi
  done
}

size() { wc -c <"$1" | tr -d ' '; }

rotate() {
  rotated=$AUDIT_LOG.$(date -u +%Y%m%dT%H%M%SZ)
  if [ -e "$rotated" ] || [ -e "$rotated.gz" ]; then return 0; fi
  mv "$AUDIT_LOG" "$rotated"
  for pid in $(proxies); do kill -HUP "$pid" 2>/dev/null || true; done
  # It writes on in the old file until it has taken the signal.
  tries=100
  while [ ! -e "$AUDIT_LOG" ]; do
    tries=$((tries - 1))
    # Not compressed, since it may still be written to: the next look tries again.
    if [ "$tries" -eq 0 ]; then
      echo "the proxy has not begun a new $AUDIT_LOG" >&2
      return 0
    fi
    sleep 0.1
  done
  gzip "$rotated"
}

# What an earlier look could not finish: only once there is a new file is nobody writing to an old one.
finish() {
  for old in "$AUDIT_LOG".*Z; do
    [ -e "$old" ] || continue
    if [ -e "$AUDIT_LOG" ]; then
      gzip -f "$old"
    else
      for pid in $(proxies); do kill -HUP "$pid" 2>/dev/null || true; done
    fi
  done
}

look() {
  finish
  if [ -e "$AUDIT_LOG" ] && [ "$(size "$AUDIT_LOG")" -ge "$MAX_BYTES" ]; then rotate; fi
}

if [ "$INTERVAL_SECS" -eq 0 ]; then
  look
  exit
fi
# As process 1 of a container a shell heeds only the signals that it asks for.
trap 'exit 0' TERM INT
while :; do
  look
  sleep "$INTERVAL_SECS" &
  wait $!
done
