//! Lines to paste while the demo keeps running.

use super::caller::{ACCESS_KEY_ID, SECRET_ACCESS_KEY};

/// Shell lines for aws-cli, boto3 and curl against the KMS at `url`, for the key with that alias. Clients are told of the URL by
/// an argument: old ones ignore `AWS_ENDPOINT_URL_KMS` and would ask AWS.
pub(super) fn lines(url: &str, region: &str, alias: &str) -> String {
    format!(
        r#"# once in a shell
export AWS_REGION={region} AWS_DEFAULT_REGION={region}
export AWS_ACCESS_KEY_ID={ACCESS_KEY_ID} AWS_SECRET_ACCESS_KEY={SECRET_ACCESS_KEY}

# aws-cli
aws --endpoint-url {url} kms describe-custom-key-stores
aws --endpoint-url {url} kms generate-data-key --key-id {alias} --key-spec AES_256

# boto3
python3 - <<'END'
import boto3
kms = boto3.client("kms", endpoint_url="{url}")
blob = kms.encrypt(KeyId="{alias}", Plaintext=b"Hello World!")["CiphertextBlob"]
print(len(blob), "bytes;", kms.decrypt(CiphertextBlob=blob)["Plaintext"])
END

# curl
curl -sS {url}/ --aws-sigv4 aws:amz:{region}:kms --user {ACCESS_KEY_ID}:{SECRET_ACCESS_KEY} \
  -H 'Content-Type: application/x-amz-json-1.1' -H 'X-Amz-Target: TrentService.DescribeKey' \
  -d '{{"KeyId": "{alias}"}}'
"#
    )
}
