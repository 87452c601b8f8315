#!/usr/bin/env bash
#
# Prints new Secrets for this overlay: ./make-secrets.sh | kubectl apply -f -
# The certificate is its own authority, which mock-kms can be told and AWS KMS cannot.

set -euo pipefail

# namespace NAME, and the cluster's own name for the Service in it
readonly namespace=xks-proxy host=xks-proxy.xks-proxy.svc

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

random() { openssl rand -hex "$1" | tr -d '\n'; }

secret() { kubectl create secret "$@" --namespace "$namespace" --dry-run=client --output yaml; }

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -sha256 -days 90 -subj "/CN=$host" \
  -addext "subjectAltName = DNS:$host" -keyout "$dir/tls.key" -out "$dir/tls.crt" 2>"$dir/log" ||
  { cat "$dir/log" >&2; exit 1; }
random 8 >"$dir/pin"
random 8 >"$dir/so-pin"
random 32 >"$dir/demo.secret"
random 32 >"$dir/audit.key"

secret tls xks-proxy-tls --cert "$dir/tls.crt" --key "$dir/tls.key"
echo ---
secret generic xks-proxy-secrets --from-file "$dir/pin" --from-file "$dir/so-pin" --from-file "$dir/demo.secret" \
  --from-file "$dir/audit.key"
