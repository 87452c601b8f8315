#!/usr/bin/env bash
#
# Builds the images from a release's binaries and runs them with podman, without a Docker engine and without a registry: the base
# image is a Debian that debootstrap makes. Encrypts and decrypts through mock-kms, and stops on SIGTERM.
#
#   deploy/docker/test.sh       as root; target/release-out/x86_64 holds the binaries (deploy/release/run)
#
# KEEP_IMAGES=1 leaves the images in the storage folder that is printed.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=deploy/release/settings
. deploy/release/settings
# shellcheck source=deploy/docker/images
. deploy/docker/images

say() { printf '== %s\n' "$*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }

[ "$(id -u)" -eq 0 ] || fail "buildah --isolation chroot needs root here"
[ -x target/release-out/x86_64/xks-proxy ] || fail "target/release-out/x86_64 holds no binaries: run deploy/release/run"
.ci/install debootstrap buildah podman crun curl python3-venv jq

# crun will not have both versions of control groups mounted; nor are any needed here. In a mount namespace of its own one goes.
if mountpoint -q /sys/fs/cgroup/unified && [ -z "${IN_NAMESPACE:-}" ]; then
  IN_NAMESPACE=1 exec unshare --mount -- "$0" "$@"
fi
[ -z "${IN_NAMESPACE:-}" ] || umount /sys/fs/cgroup/unified

work=$(mktemp -d)
storage=(--root "$work/storage" --runroot "$work/run" --storage-driver vfs)
skipped=()
# Podman's own are above this machine's, which is an error where it may not raise them.
limits=(--ulimit nofile=16384:16384 --ulimit nproc=4096:4096)

finish() {
  podman "${storage[@]}" rm --force --all >/dev/null 2>&1 || true
  if [ -n "${KEEP_IMAGES:-}" ]; then echo "images: --root $work/storage --storage-driver vfs"; else rm -rf --one-file-system "$work"; fi
}
trap finish EXIT

say "a base image of Debian's packages"
debootstrap --variant=minbase bookworm "$work/debian" >"$work/debootstrap.log" 2>&1 || fail "$(tail -n 5 "$work/debootstrap.log")"
# What the machine's own apt goes through, so that the build reaches Debian's packages too.
base=$(buildah "${storage[@]}" from scratch)
buildah "${storage[@]}" copy --quiet "$base" "$work/debian" / >/dev/null
buildah "${storage[@]}" commit --quiet "$base" localhost/debian:bookworm-slim >/dev/null
buildah "${storage[@]}" rm "$base" >/dev/null
rm -rf "$work/debian"

say "the images"
engine=(buildah "${storage[@]}")
for target in "${image_targets[@]}"; do
  # --network host: apt-get in the build sees the network as the machine does.
  build_image "$target" "localhost/$(image_name "$target")" --quiet --isolation chroot --network host \
    --build-arg BASE=localhost/debian:bookworm-slim >"$work/build.log" 2>&1 ||
    { tail -n 20 "$work/build.log"; fail "build of $target"; }
done
skipped+=("the stage that compiles (BINARIES=build): no image of Rust without a registry")
skipped+=("the bases UBI 9 and Amazon Linux 2023: no copy without a registry")

say "what the image says of itself"
inspect() { podman "${storage[@]}" image inspect --format "$1" localhost/xks-proxy; }
[ "$(inspect '{{.Config.User}}')" = 10001:10001 ] || fail "user $(inspect '{{.Config.User}}')"
[ "$(inspect '{{index .Config.Labels "org.opencontainers.image.version"}}')" = "$version" ] || fail "version label"
[ "$(inspect '{{index .Config.Labels "org.opencontainers.image.revision"}}')" = "$XKS_PROXY_COMMIT" ] || fail "revision label"
inspect '{{json .HealthCheck}}{{json .Config.Healthcheck}}' | grep -q probe || fail "no health check"
# The release's archive holds the same: unpacked it says so, and it brings the SBOM.
save_image localhost/xks-proxy "$work/image.tar" >/dev/null
mkdir "$work/image"
tar -xf "$work/image.tar" -C "$work/image"
config=$work/image/$(jq -r '.[0].Config' "$work/image/manifest.json")
jq -e '.config.Healthcheck.Test | index("probe") != null' "$config" >/dev/null ||
  fail "no health check in the archive"
rm -rf "$work/image" "$work/image.tar"
podman "${storage[@]}" run --rm --runtime crun --cgroups=disabled "${limits[@]}" --no-healthcheck --network=none --read-only \
  --entrypoint cat localhost/xks-proxy /usr/share/xks-proxy/xks-proxy.cdx.json >"$work/sbom.json" || fail "no SBOM"
jq -e '.bomFormat == "CycloneDX"' "$work/sbom.json" >/dev/null || fail "the SBOM is none"

# run NAME OPTIONS... IMAGE ARGUMENTS...: in the background, as the document has it: read-only, no capability, no new privileges.
# Podman's health checks are timers of a systemd that may not be there: the check is run by hand.
run() {
  local name=$1
  shift
  podman "${storage[@]}" run --detach --name "$name" --runtime crun --cgroups=disabled "${limits[@]}" --no-healthcheck --network=host --read-only --cap-drop=all \
    --security-opt no-new-privileges --log-driver k8s-file --log-opt "path=$work/$name.log" "$@" >/dev/null ||
    fail "$name does not start"
}
until_true() {
  local left=600
  until "$@" >/dev/null 2>&1; do
    left=$((left - 1))
    if [ "$left" -le 0 ]; then cat "$work"/*.log; fail "not in time: $*"; fi
    sleep 0.1
  done
}
# free_port: one that nobody listens on just now.
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
kms_port=$(free_port) listen=$(free_port) admin=$(free_port) ping=$(free_port)

say "the proxy with SoftHSM2, its root file system read-only"
mkdir "$work/state" && chown 10001:10001 "$work/state" && chmod 700 "$work/state"
run softhsm --volume "$work/state:/var/lib/xks-proxy" --tmpfs /tmp \
  --env XKS_HOST=xks.example.com --env XKS_LISTEN="127.0.0.1:$listen" --env XKS_ADMIN="127.0.0.1:$admin" --env XKS_PING="127.0.0.1:$ping" \
  --env XKS_LAME_DUCK_SECS=1 localhost/xks-proxy-softhsm
probe() { podman "${storage[@]}" exec softhsm /usr/bin/xks-proxy probe --admin "127.0.0.1:$admin" "$@"; }
until_true curl -sf "http://127.0.0.1:$admin/readyz"
probe --ready || fail "probe"
curl -sf "http://127.0.0.1:$ping/ping" >/dev/null || fail "ping"
pid=$(podman "${storage[@]}" inspect --format '{{.State.Pid}}' softhsm)
[ "$(awk '/^Uid:/ { print $2 }' "/proc/$pid/status")" = 10001 ] || fail "it does not run as user 10001"
[ "$(awk '/^CapEff:/ { print $2 }' "/proc/$pid/status")" = 0000000000000000 ] || fail "it has capabilities"

say "a KMS that encrypts through it"
run kms --volume "$work/state/client:/client:ro" localhost/xks-mock-kms serve --listen "127.0.0.1:$kms_port" \
  --resolve "xks.example.com=127.0.0.1:$listen" --ca-file /client/ca.pem --proxy-timeout-ms 5000
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet boto3
until_true curl -s "http://127.0.0.1:$kms_port/"
cat >"$work/client.py" <<'PYTHON'
import json, sys, time
import boto3

kms = boto3.client("kms", endpoint_url=sys.argv[1], region_name="us-east-1",
                   aws_access_key_id="any", aws_secret_access_key="any")
store = kms.create_custom_key_store(**json.load(open(sys.argv[2])))["CustomKeyStoreId"]
kms.connect_custom_key_store(CustomKeyStoreId=store)
state = None
for _ in range(600):
    state = kms.describe_custom_key_stores(CustomKeyStoreId=store)["CustomKeyStores"][0]["ConnectionState"]
    if state == "CONNECTED":
        break
    time.sleep(0.1)
assert state == "CONNECTED", state
key = kms.create_key(Origin="EXTERNAL_KEY_STORE", CustomKeyStoreId=store, XksKeyId="demo")["KeyMetadata"]["KeyId"]
blob = kms.encrypt(KeyId=key, Plaintext=b"Hello World!")["CiphertextBlob"]
assert b"Hello" not in blob
assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"Hello World!"
print("encrypted and decrypted through KMS, proxy and HSM")
PYTHON
"$work/venv/bin/python" "$work/client.py" "http://127.0.0.1:$kms_port" "$work/state/client/store.json"
grep -q '"operation":"Encrypt"' "$work/softhsm.log" || fail "the proxy saw no Encrypt"

say "the conformance suite starts"
podman "${storage[@]}" run --rm --runtime crun --cgroups=disabled "${limits[@]}" --no-healthcheck --network=none --read-only localhost/xks-conformance --help >/dev/null

say "SIGTERM ends it in order, and a new one has the same token"
podman "${storage[@]}" kill --signal TERM softhsm >/dev/null
code=$(podman "${storage[@]}" wait softhsm)
[ "$code" = 0 ] || { cat "$work/softhsm.log"; fail "exit code $code"; }
grep -q '"message":"stopped","clean":true' "$work/softhsm.log" || fail "it did not stop in order"
podman "${storage[@]}" start softhsm >/dev/null
until_true curl -sf "http://127.0.0.1:$admin/readyz"
podman "${storage[@]}" kill --signal TERM softhsm >/dev/null
podman "${storage[@]}" wait softhsm >/dev/null

say "the image without a module complains of its configuration and ends with 2"
code=0
podman "${storage[@]}" run --rm --runtime crun --cgroups=disabled "${limits[@]}" --no-healthcheck --network=none --read-only localhost/xks-proxy >"$work/bare.log" 2>&1 || code=$?
[ "$code" = 2 ] || { cat "$work/bare.log"; fail "exit code $code"; }

skipped+=("compose.yaml: no compose without a Docker engine; its syntax alone is checked by .ci/units")
printf 'skipped: %s\n' "${skipped[@]}"
echo "all passed"
