#!/bin/sh
# aws-cli against mock-kms and a real proxy: store, key, cryptography, an error.
set -eu

# aws-cli v1 would download a parameter that begins with https://.
AWS_CONFIG_FILE=$(mktemp)
folder=$(mktemp -d)
export AWS_CONFIG_FILE AWS_PAGER='' AWS_DEFAULT_OUTPUT=text
trap 'rm -rf "$AWS_CONFIG_FILE" "$folder"' EXIT
printf '[default]\ncli_follow_urlparam = false\n' >"$AWS_CONFIG_FILE"

kms() {
    aws kms "$@"
}

store=$(kms create-custom-key-store --custom-key-store-name aws-cli --custom-key-store-type EXTERNAL_KEY_STORE \
    --xks-proxy-connectivity PUBLIC_ENDPOINT --xks-proxy-uri-endpoint https://localhost \
    --xks-proxy-uri-path "$XKS_URI_PATH" \
    --xks-proxy-authentication-credential "AccessKeyId=$XKS_ACCESS_KEY_ID,RawSecretAccessKey=$XKS_SECRET_ACCESS_KEY" \
    --query CustomKeyStoreId)
kms connect-custom-key-store --custom-key-store-id "$store"
state=CONNECTING
while [ "$state" = CONNECTING ]; do
    state=$(kms describe-custom-key-stores --custom-key-store-id "$store" --query 'CustomKeyStores[0].ConnectionState')
done
[ "$state" = CONNECTED ]

key=$(kms create-key --origin EXTERNAL_KEY_STORE --custom-key-store-id "$store" --xks-key-id demo \
    --query KeyMetadata.Arn)
kms create-alias --alias-name alias/aws-cli --target-key-id "$key"
head -c 4096 /dev/urandom >"$folder/plaintext"
kms encrypt --key-id alias/aws-cli --plaintext "fileb://$folder/plaintext" --encryption-context a=1,b=2 \
    --query CiphertextBlob | base64 -d >"$folder/blob"
kms decrypt --ciphertext-blob "fileb://$folder/blob" --encryption-context b=2,a=1 --query Plaintext |
    base64 -d >"$folder/decrypted"
cmp "$folder/plaintext" "$folder/decrypted"

kms generate-data-key --key-id "$key" --key-spec AES_256 --query Plaintext >"$folder/data-key"
[ "$(base64 -d "$folder/data-key" | wc -c)" -eq 32 ]
kms disable-key --key-id "$key"
if kms decrypt --ciphertext-blob "fileb://$folder/blob" --encryption-context a=1,b=2 2>"$folder/error"; then
    echo "a disabled key has decrypted" >&2
    exit 1
fi
grep -q "(DisabledException).*$key is disabled." "$folder/error"
echo "$(aws --version 2>&1 | cut -d ' ' -f 1) is served"
