#!/usr/bin/env bash
#
# Makes a folder with all that xks-proxy needs on a developer's machine: a SoftHSM2 token with keys, TLS
# certificates, SigV4 credentials, a configuration file, and a shell file of variables for clients.
#
#   ./softhsm-setup.sh [DIR]      DIR is .dev beside this script unless given
#
# Run it as often as you like: what is there stays, what is missing is made, certificates are renewed on their
# last day. Delete DIR to begin anew. Nothing in DIR is fit for production.

set -euo pipefail
unset CDPATH # it would make cd print, and go elsewhere

readonly token_label=xks-dev
readonly days=824 # Apple's clients accept server certificates of 825 days at most
readonly day_secs=86400

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
readonly root

die() {
  printf 'softhsm-setup: %s\n' "$*" >&2
  exit 1
}

say() { printf '%s\n' "$*"; }

# The tool that makes tokens; it knows where distributions install SoftHSM2.
token() { cargo run -q --manifest-path "$root/Cargo.toml" -p softhsm-token -- "$@"; }

# Runs a command that talks too much; its words appear only if it fails.
quietly() {
  local words
  words=$("$@" 2>&1) || die "$1 failed: $words"
}

# --- Programs ---------------------------------------------------------------------------------------------

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    die "only root can install SoftHSM2 and OpenSSL here; please install them and run this again"
  fi
}

install_programs() {
  say "Installing SoftHSM2 and OpenSSL ..."
  if command -v apt-get >/dev/null; then
    as_root apt-get update -q
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends softhsm2 openssl
  elif command -v dnf >/dev/null; then
    as_root dnf install -y softhsm openssl
  elif command -v apk >/dev/null; then
    as_root apk add softhsm openssl
  elif command -v brew >/dev/null; then
    brew install softhsm openssl # Homebrew refuses to run as root
  else
    die "no apt-get, dnf, apk or brew here; please install SoftHSM2 2.6 or later and OpenSSL, and run this again"
  fi
}

check_programs() {
  command -v cargo >/dev/null || die "cargo is missing; please install Rust from https://rustup.rs"
  say "Checking the tools; the first time one is built, which takes a moment ..."
  quietly cargo build -q --manifest-path "$root/Cargo.toml" -p softhsm-token
  if ! token module >/dev/null 2>&1 || ! command -v openssl >/dev/null; then
    install_programs
  fi
  module=$(token module) || exit
}

# --- Files ------------------------------------------------------------------------------------------------

enter_folder() {
  local path=$1
  case $path in
    /*) ;;
    *) path=$PWD/$path ;;
  esac
  case $path in
    # SoftHSM2's settings file ends a value at either; no format here has a use for control characters.
    *[#=[:cntrl:]]*) die "the path of the folder must not contain '#', '=' or control characters: $path" ;;
  esac
  if [ -d "$path" ] && [ ! -d "$path/tokens" ] && [ -n "$(ls -A "$path")" ]; then
    die "$path holds other files; please name a new or empty folder"
  fi
  mkdir -p "$path/tokens"
  dir=$(cd "$path" && pwd -P)
  chmod 700 "$dir"
  mkdir -p "$dir/tls"
  rm -rf "$dir/staging" "$dir"/*.new "$dir"/tls/*.new # what an interrupted run left
  trap 'not_finished $?' EXIT
}

not_finished() {
  if [ "$1" -ne 0 ]; then
    say "Not finished. Please run this again; if it fails again, delete $dir to begin anew." >&2
  fi
}

# Writes standard input to a file, whole or not at all.
write() {
  cat >"$1.new"
  mv -f "$1.new" "$1"
}

# The same, but leaves a file alone that says so already.
update() {
  cat >"$1.new"
  if cmp -s "$1.new" "$1"; then rm -f "$1.new"; else mv -f "$1.new" "$1"; fi
}

# random_chars COUNT SET: that many characters of the set, as tr writes sets.
random_chars() {
  local chars
  chars=$(head -c 4096 /dev/urandom | LC_ALL=C tr -dc "$2")
  [ "${#chars}" -ge "$1" ] || die "/dev/urandom gave too little"
  printf '%s' "${chars:0:$1}"
}

# secret FILE COUNT SET: a random secret without a final newline, unless the file is there.
secret() {
  if [ ! -s "$1" ]; then random_chars "$2" "$3" | write "$1"; fi
}

# Quotes standard input for a shell, and for a TOML string.
shell_quoted() { printf "'%s'" "$(sed "s/'/'\\\\''/g")"; }
toml_quoted() { printf '"%s"' "$(sed 's/[\\"]/\\&/g')"; }

# --- Token ------------------------------------------------------------------------------------------------

key() {
  local label=$1 usage=$2
  shift 2
  token generate --module "$module" --token "$token_label" --pin-file "$dir/pin" \
    --label "$label" --usage "$usage" "$@"
}

# use_tokens FOLDER: what follows works on FOLDER/tokens.
use_tokens() {
  update "$1/softhsm2.conf" <<EOF
directories.tokendir = $1/tokens
objectstore.backend = file
log.level = ERROR
EOF
  export SOFTHSM2_CONF="$1/softhsm2.conf"
}

fill_token() {
  token init --module "$module" --label "$token_label" --so-pin-file "$dir/so-pin" --pin-file "$dir/pin"
  key demo encrypt,decrypt
  key demo-2 encrypt,decrypt
  key encrypt-only encrypt
  key decrypt-only decrypt
  key no-usage none
  key aes-128 encrypt,decrypt --bits 128
  key xks-health encrypt,decrypt
}

make_token() {
  if [ -z "$(ls -A "$dir/tokens")" ]; then
    secret "$dir/so-pin" 16 'A-Za-z0-9'
    secret "$dir/pin" 16 'A-Za-z0-9'
    # SoftHSM2 writes a token piece by piece, and refuses all work beside a half-written one.
    mkdir -p "$dir/staging/tokens"
    use_tokens "$dir/staging"
    fill_token
    mv "$dir/staging/tokens"/* "$dir/tokens"
    rm -rf "$dir/staging"
    use_tokens "$dir"
  elif [ -s "$dir/pin" ] && [ -s "$dir/so-pin" ]; then
    use_tokens "$dir"
    fill_token
  else
    die "$dir/tokens holds a token, but its PIN is gone"
  fi
}

# --- Certificates -----------------------------------------------------------------------------------------

new_private_key() {
  case $1 in
    rsa) quietly openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$2" ;;
    ecdsa) quietly openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$2" ;;
  esac
}

# Whether NAME.pem still lives for a day, belongs to NAME.key, and is chained to the CA.
certificate_holds() {
  local name=$1
  [ -s "$name.pem" ] && [ -s "$name.key" ] &&
    openssl x509 -in "$name.pem" -noout -checkend "$day_secs" >/dev/null 2>&1 &&
    [ "$(openssl x509 -in "$name.pem" -noout -pubkey)" = "$(openssl pkey -in "$name.key" -pubout 2>/dev/null)" ] &&
    openssl verify -CAfile "$dir/tls/ca.pem" "$name.pem" >/dev/null 2>&1
}

make_ca() {
  local name="$dir/tls/ca"
  if certificate_holds "$name"; then return; fi
  new_private_key ecdsa "$name.key.new"
  quietly openssl req -new -x509 -sha256 -days "$days" -key "$name.key.new" -out "$name.pem.new" \
    -config /dev/stdin <<EOF
[req]
prompt = no
distinguished_name = name
x509_extensions = extensions
[name]
CN = xks-proxy development CA
[extensions]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
EOF
  mv -f "$name.key.new" "$name.key"
  mv -f "$name.pem.new" "$name.pem"
  say "tls/ca.pem: certificate made"
}

# make_leaf NAME KEY_TYPE COMMON_NAME EXTENSION...
make_leaf() {
  local name="$dir/tls/$1" key_type=$2 common_name=$3
  if certificate_holds "$name"; then return; fi
  new_private_key "$key_type" "$name.key.new"
  quietly openssl req -new -key "$name.key.new" -out "$name.csr.new" -config /dev/stdin <<EOF
[req]
prompt = no
distinguished_name = name
[name]
CN = $common_name
EOF
  # The random serial number must be positive and differ between runs: clients reject one seen twice.
  quietly openssl x509 -req -sha256 -days "$days" -in "$name.csr.new" -out "$name.pem.new" \
    -CA "$dir/tls/ca.pem" -CAkey "$dir/tls/ca.key" -set_serial "0x$(openssl rand -hex 16)" \
    -extfile /dev/stdin <<EOF
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
$(printf '%s\n' "${@:4}")
EOF
  rm -f "$name.csr.new"
  mv -f "$name.key.new" "$name.key"
  mv -f "$name.pem.new" "$name.pem"
  say "tls/$1.pem: certificate made"
}

make_certificates() {
  local names="subjectAltName = DNS:localhost, IP:127.0.0.1, IP:::1"
  make_ca
  make_leaf server-rsa rsa localhost "extendedKeyUsage = serverAuth" "$names"
  make_leaf server-ecdsa ecdsa localhost "extendedKeyUsage = serverAuth" "$names"
  # The name under which AWS KMS presents itself in this Region when the proxy asks for mutual TLS.
  make_leaf client ecdsa cks.kms.us-east-1.amazonaws.com "extendedKeyUsage = clientAuth"
}

# --- Configuration ----------------------------------------------------------------------------------------

make_credentials() {
  local store
  for store in demo other; do
    secret "$dir/$store.id" 26 'A-Z2-7'
    secret "$dir/$store.secret" 43 'A-Za-z0-9/+'
  done
}

proxy_configuration() {
  cat <<EOF
# For development, made by softhsm-setup.sh. Edit it freely: it is not overwritten.
# Relative paths are relative to this file's folder.

[server]
# \`localhost\` may resolve to ::1 first; nothing listens there, and curl falls back to IPv4 by itself.
listen = "127.0.0.1:8443"

# Two certificates serve both kinds of TLS 1.2 clients; each client gets the one it can verify.
[[server.certificates]]
chain_file = "tls/server-ecdsa.pem"
key_file = "tls/server-ecdsa.key"

[[server.certificates]]
chain_file = "tls/server-rsa.pem"
key_file = "tls/server-rsa.key"

# Liveness, readiness and metrics. Plain HTTP: keep it off public networks.
[admin]
listen = "127.0.0.1:9464"

# A token is chosen by its label: slot numbers may change when the HSM restarts.
[[tokens]]
name = "softhsm"
module = $(printf '%s' "$module" | toml_quoted)
label = "$token_label"
pin = { file = "pin" }
# Each session is a thread. SoftHSM2 is fastest with one; network HSMs want more.
sessions = 1
# Set for the module before it is loaded.
environment = { SOFTHSM2_CONF = $(printf '%s' "$SOFTHSM2_CONF" | toml_quoted) }

# A store is what AWS KMS calls an external key store: a URI path prefix with its own credentials and keys.
[[stores]]
name = "demo"
uri_path_prefix = "/demo"
tokens = ["softhsm"]
# Whoever has the credentials may use every key of the store.
authorization = "none"

# A second [[stores.credentials]] is what a rotation without downtime begins with.
[[stores.credentials]]
access_key_id = "$(cat "$dir/demo.id")"
secret_access_key = { file = "demo.secret" }

# external_key_id is what KMS calls the key, label what the token calls it. Ciphertexts carry the version's number.
[[stores.keys]]
external_key_id = "demo"
label = "demo"
version = 1

[[stores.keys]]
external_key_id = "demo-2"
label = "demo-2"

# The rest are for tests of what must not work; KMS would make no key of them.
[[stores.keys]]
external_key_id = "encrypt-only"
label = "encrypt-only"

[[stores.keys]]
external_key_id = "decrypt-only"
label = "decrypt-only"

[[stores.keys]]
external_key_id = "no-usage"
label = "no-usage"

[[stores.keys]]
external_key_id = "aes-128"
label = "aes-128"

# A prefix may lie below another's: what KMS sends to one store the other never sees.
[[stores]]
name = "other"
uri_path_prefix = "/demo/other"
tokens = ["softhsm"]
authorization = "none"
# Keys need no lines of their own where a rule names them: the external key "a" is the token's key "other-a".
key_rule = { label_prefix = "other-" }

[[stores.credentials]]
access_key_id = "$(cat "$dir/other.id")"
secret_access_key = { file = "other.secret" }
EOF
}

# Edits are kept; configuration_note tells of them.
make_configuration() {
  local file="$dir/xks-proxy.toml"
  configuration_note=
  if [ ! -s "$file" ]; then
    proxy_configuration | write "$file"
  elif ! proxy_configuration | cmp -s - "$file"; then
    configuration_note="(kept, though it differs from a new one; delete it to have it made anew)"
  fi
}

export_line() { printf 'export %s=%s\n' "$1" "$(printf '%s' "$2" | shell_quoted)"; }

environment_file() {
  say "# Variables for clients of the development proxy, made by softhsm-setup.sh. Source this file in a shell."
  export_line XKS_PROXY_HOST localhost:8443
  export_line URI_PREFIX demo
  export_line SIGV4_ACCESS_KEY_ID "$(cat "$dir/demo.id")"
  export_line SIGV4_SECRET_ACCESS_KEY "$(cat "$dir/demo.secret")"
  export_line REGION us-east-1
  export_line KEY_ID demo
  export_line ENCRYPT_ONLY_KEY_ID encrypt-only
  export_line DECRYPT_ONLY_KEY_ID decrypt-only
  export_line IMPOTENT_KEY_ID no-usage
  export_line CURL_CA_BUNDLE "$dir/tls/ca.pem"
  export_line KEY_ID_2 demo-2
  export_line AES_128_KEY_ID aes-128
  export_line OTHER_URI_PREFIX demo/other
  export_line OTHER_SIGV4_ACCESS_KEY_ID "$(cat "$dir/other.id")"
  export_line OTHER_SIGV4_SECRET_ACCESS_KEY "$(cat "$dir/other.secret")"
  export_line SOFTHSM2_CONF "$SOFTHSM2_CONF"
}

summary() {
  local config environment
  config=$(printf '%s' "$dir/xks-proxy.toml" | shell_quoted)
  environment=$(printf '%s' "$dir/env" | shell_quoted)
  cat <<EOF

Ready: $dir
  xks-proxy.toml  serves https://localhost:8443, stores /demo and /demo/other${configuration_note:+ $configuration_note}
  env             variables for clients: . $environment
  tls/            certificates; clients trust tls/ca.pem
  tokens/         the SoftHSM2 token $token_label; its PIN is in the file pin

Next:
  cargo run --release -- serve --config $config
EOF
}

main() {
  case ${1-} in
    -h | --help)
      sed -n '3,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      return
      ;;
  esac
  [ $# -le 1 ] || die "usage: softhsm-setup.sh [DIR]"
  check_programs
  umask 077 # from here on every file is the owner's alone
  enter_folder "${1:-$root/.dev}"
  make_token
  make_certificates
  make_credentials
  make_configuration
  environment_file | update "$dir/env"
  summary
}

main "$@"
