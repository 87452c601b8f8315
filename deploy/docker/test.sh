#!/usr/bin/env bash
#
# Builds the images from a release's binaries and runs them with podman, without a Docker engine and without a registry: the base
# image is a Debian that debootstrap makes. Encrypts and decrypts through mock-kms, stops on SIGTERM, and starts compose.yaml with
# podman-compose.
#
#   deploy/docker/test.sh [--compile]       as root; target/release-out/x86_64 holds the binaries (deploy/release/run)
#
# --compile: also the stage that compiles, in Debian's Rust, which takes as long as a release. KEEP_IMAGES=1 leaves the images in
# the storage folder that is printed.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=deploy/release/settings
. deploy/release/settings
# shellcheck source=deploy/docker/images
. deploy/docker/images

say() { printf '== %s\n' "$*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }

with_compiler=
case "$*" in
  '') ;;
  --compile) with_compiler=yes ;;
  *) fail "usage: deploy/docker/test.sh [--compile]" ;;
esac
[ "$(id -u)" -eq 0 ] || fail "buildah --isolation chroot needs root here"
[ -x target/release-out/x86_64/xks-proxy ] || fail "target/release-out/x86_64 holds no binaries: run deploy/release/run"
.ci/install debootstrap buildah podman crun netavark aardvark-dns iptables curl python3-venv jq

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
deploy/docker/base ${with_compiler:+--rust} "${storage[@]}"

say "the images"
engine=(buildah "${storage[@]}")
for target in "${image_targets[@]}"; do
  # --network host: apt-get in the build sees the network as the machine does.
  build_image "$target" "localhost/$(image_name "$target")" --quiet --isolation chroot --network host \
    --build-arg BASE=localhost/debian:bookworm-slim >"$work/build.log" 2>&1 ||
    { tail -n 20 "$work/build.log"; fail "build of $target"; }
done
if [ -n "$with_compiler" ]; then
  say "the stage that compiles, in Debian's Rust"
  # BINARIES is the default; Debian's buildah takes the name of a stage from an argument only where it is given.
  "${engine[@]}" build --isolation chroot --network host --file deploy/docker/Dockerfile --target proxy --tag localhost/compiled \
    --build-arg BINARIES=build --build-arg RUST=localhost/rust:bookworm --build-arg BASE=localhost/debian:bookworm-slim \
    --build-arg XKS_PROXY_COMMIT="$XKS_PROXY_COMMIT" . >"$work/build.log" 2>&1 ||
    { tail -n 20 "$work/build.log"; fail "the stage that compiles"; }
  podman "${storage[@]}" run --rm --runtime crun --cgroups=disabled "${limits[@]}" --network=none localhost/compiled --version
else
  skipped+=("the stage that compiles (BINARIES=build): --compile has it run")
fi
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

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet boto3 podman-compose==1.6.0

say "a KMS that encrypts through it"
run kms --volume "$work/state/client:/client:ro" localhost/xks-mock-kms serve --listen "127.0.0.1:$kms_port" \
  --resolve "xks.example.com=127.0.0.1:$listen" --ca-file /client/ca.pem --proxy-timeout-ms 5000
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

say "compose.yaml: the proxy, a KMS that encrypts through it, and Prometheus, which has its figures and the rules"
cat >"$work/containers.conf" <<CONF
[containers]
cgroups = "disabled"
log_driver = "k8s-file"
default_ulimits = ["nofile=16384:16384", "nproc=4096:4096"]
[engine]
runtime = "crun"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
network_config_dir = "$work/networks"
CONF
printf '[storage]\ndriver = "vfs"\ngraphroot = "%s"\nrunroot = "%s"\n' "$work/storage" "$work/run" >"$work/storage.conf"
export CONTAINERS_CONF=$work/containers.conf CONTAINERS_STORAGE_CONF=$work/storage.conf
# In place of those of a registry.
mkdir "$work/prometheus"
cat >"$work/prometheus/Dockerfile" <<'DOCKERFILE'
FROM localhost/debian:bookworm-slim
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends prometheus \
    && mkdir /prometheus && chown nobody /prometheus
USER nobody
ENTRYPOINT ["/usr/bin/prometheus", "--storage.tsdb.path=/prometheus"]
DOCKERFILE
buildah build --quiet --isolation chroot --network host --tag localhost/prometheus "$work/prometheus" >"$work/build.log" 2>&1 ||
  { tail -n 20 "$work/build.log"; fail "build of Prometheus"; }
# Free ports, this machine's limits, and no health checks of podman's, which wants systemd for them.
kms_port=$(free_port) prometheus_port=$(free_port) memlock=$(ulimit -H -l)
[ "$memlock" = unlimited ] && memlock=67108864 || memlock=$((memlock * 1024))
cat >"$work/override.yaml" <<YAML
services:
  xks-proxy:
    image: localhost/xks-proxy-softhsm
    environment: { XKS_LAME_DUCK_SECS: "1" }
    ulimits: { nofile: 16384, nproc: 4096, memlock: $memlock }
    healthcheck: { disable: true }
  mock-kms:
    image: localhost/xks-mock-kms
    ports: !override ["127.0.0.1:$kms_port:4599"]
  prometheus:
    image: localhost/prometheus
    ports: !override ["127.0.0.1:$prometheus_port:9090"]
YAML
compose() {
  "$work/venv/bin/podman-compose" --project-name xks-test --file deploy/docker/compose.yaml --file "$work/override.yaml" "$@" \
    >>"$work/compose.log" 2>&1
}
compose up --detach --no-build xks-proxy || { cat "$work/compose.log"; fail "compose: the proxy does not start"; }
until_true podman exec xks-test_xks-proxy_1 /usr/bin/xks-proxy probe --ready
compose up --detach --no-build mock-kms prometheus || { cat "$work/compose.log"; fail "compose: KMS and Prometheus do not start"; }
until_true curl -s "http://127.0.0.1:$kms_port/"
podman exec xks-test_xks-proxy_1 cat /var/lib/xks-proxy/client/store.json >"$work/store.json"
"$work/venv/bin/python" "$work/client.py" "http://127.0.0.1:$kms_port" "$work/store.json"
# Prometheus has scraped the proxy and evaluated the rules.
has_figures() {
  curl -sf "http://127.0.0.1:$prometheus_port/api/v1/query" --data-urlencode 'query=xks_ready == 1' | jq -e '.data.result | length == 1'
}
until_true has_figures
[ "$(curl -sf "http://127.0.0.1:$prometheus_port/api/v1/rules" | jq '[.data.groups[].rules[]] | length')" -gt 30 ] || fail "no rules"
compose stop xks-proxy
podman logs xks-test_xks-proxy_1 2>&1 | grep -q '"message":"stopped","clean":true' || fail "compose: the proxy did not stop in order"
compose down --volumes --timeout 5

say "the image proxy with a client installed on top, as docs/deployment.md runs it"
mkdir "$work/client" "$work/etc"
cat >"$work/client/Dockerfile" <<'DOCKERFILE'
FROM localhost/xks-proxy
USER 0
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends softhsm2
USER 10001:10001
DOCKERFILE
buildah build --quiet --format docker --isolation chroot --network host --tag localhost/xks-proxy "$work/client" >"$work/build.log" 2>&1 ||
  { tail -n 20 "$work/build.log"; fail "build on top of the proxy"; }
# The token, key, certificate and credential of the try-out before; the rest is the operator's own.
for volume in xks-state xks-audit; do podman volume create "$volume" >/dev/null; done
state=$(podman volume inspect --format '{{.Mountpoint}}' xks-state)
cp -a "$work/state/tokens" "$state/"
chown 10001:10001 "$state" && chmod 700 "$state"
(cd "$work/state" && cp pin secret server.pem server.key softhsm2.conf "$work/etc/")
cat >"$work/etc/xks-proxy.toml" <<CONF
[server]
listen = "0.0.0.0:8443"
lame_duck_secs = 1
certificates = [{ chain_file = "server.pem", key_file = "server.key" }]
[ping]
listen = "0.0.0.0:8080"
[state]
dir = "/var/lib/xks-proxy"
[audit]
path = "/var/log/xks-proxy/audit.log"
[[tokens]]
name = "softhsm"
module = "/usr/lib/softhsm/libsofthsm2.so"
label = "xks"
pin = { file = "pin" }
sessions = 1
environment = { SOFTHSM2_CONF = "/etc/xks-proxy/softhsm2.conf" }
$(sed -n '/^\[\[stores\]\]/,$p' "$work/state/xks-proxy.toml")
CONF
chgrp -R 10001 "$work/etc" && chmod 750 "$work/etc" && chmod 640 "$work/etc"/*
listen=$(free_port) ping=$(free_port)
# Free ports, this machine's limits and folder, no health check of podman's; all else as it stands there.
block=$(tests/documents/block deploy/docker/test.sh docs/deployment.md 1 |
  sed "s|memlock=[0-9]*|memlock=$memlock|; s|-v /etc/xks-proxy:|-v $work/etc:|; s|-p 443:|-p 127.0.0.1:$listen:|; s|-p 8080:|-p 127.0.0.1:$ping:|; s|^docker run |podman run ${limits[*]} --no-healthcheck |")
bash -eux -c "$block" >/dev/null || fail "docker run"
until_true curl -sf "http://127.0.0.1:$ping/ping"
podman exec xks /usr/bin/xks-proxy check --config /etc/xks-proxy/xks-proxy.toml >"$work/check.log" 2>&1 || { cat "$work/check.log"; fail "check"; }
curl -s --cacert "$work/etc/server.pem" --resolve "xks.example.com:$listen:127.0.0.1" "https://xks.example.com:$listen/ping" >/dev/null ||
  fail "no TLS on the published port"
pid=$(podman inspect --format '{{.State.Pid}}' xks)
kill -KILL "$pid"
is_another() { [ "$(podman inspect --format '{{.State.Pid}}' xks)" != "$pid" ] && curl -sf "http://127.0.0.1:$ping/ping"; }
until_true is_another
podman stop xks >/dev/null
podman logs xks 2>&1 | grep -q '"message":"stopped","clean":true' || fail "it did not stop in order"
podman run --rm --no-healthcheck --network=none --read-only -v xks-audit:/var/log/xks-proxy localhost/xks-proxy audit verify \
  /var/log/xks-proxy/audit.log || fail "audit verify"
skipped+=("Grafana of compose.yaml: Debian has no package of it")
printf 'skipped: %s\n' "${skipped[@]}"
echo "all passed"
