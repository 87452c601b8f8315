"""The AWS Encryption SDK for Python against mock-kms and a real proxy: envelope encryption of a file's worth of data."""

import os
import time

import aws_encryption_sdk
import boto3
from aws_encryption_sdk import CommitmentPolicy, StrictAwsKmsMasterKeyProvider
from aws_encryption_sdk.exceptions import DecryptKeyError, MasterKeyProviderError

KMS = boto3.client("kms")


def connected_store():
    store = KMS.create_custom_key_store(
        CustomKeyStoreName="encryption-sdk",
        CustomKeyStoreType="EXTERNAL_KEY_STORE",
        XksProxyConnectivity="PUBLIC_ENDPOINT",
        XksProxyUriEndpoint="https://localhost",
        XksProxyUriPath=os.environ["XKS_URI_PATH"],
        XksProxyAuthenticationCredential={
            "AccessKeyId": os.environ["XKS_ACCESS_KEY_ID"],
            "RawSecretAccessKey": os.environ["XKS_SECRET_ACCESS_KEY"],
        },
    )["CustomKeyStoreId"]
    KMS.connect_custom_key_store(CustomKeyStoreId=store)
    while True:
        entry = KMS.describe_custom_key_stores(CustomKeyStoreId=store)["CustomKeyStores"][0]
        if entry["ConnectionState"] != "CONNECTING":
            assert entry["ConnectionState"] == "CONNECTED", entry
            return store
        time.sleep(0.01)


KEY = KMS.create_key(Origin="EXTERNAL_KEY_STORE", CustomKeyStoreId=connected_store(), XksKeyId="demo")["KeyMetadata"]["Arn"]
SDK = aws_encryption_sdk.EncryptionSDKClient(commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT)
PROVIDER = StrictAwsKmsMasterKeyProvider(key_ids=[KEY])
PLAINTEXT = os.urandom(1 << 20)
CONTEXT = {"project": "nile"}

message, header = SDK.encrypt(source=PLAINTEXT, key_provider=PROVIDER, encryption_context=CONTEXT)
assert PLAINTEXT[:64] not in message
decrypted, header = SDK.decrypt(source=message, key_provider=PROVIDER)
assert decrypted == PLAINTEXT
assert CONTEXT.items() <= header.encryption_context.items()

KMS.disable_key(KeyId=KEY)
try:
    SDK.decrypt(source=message, key_provider=StrictAwsKmsMasterKeyProvider(key_ids=[KEY]))
except (DecryptKeyError, MasterKeyProviderError):
    print("aws-encryption-sdk", aws_encryption_sdk.identifiers.__version__, "is served")
else:
    raise AssertionError("a disabled key has decrypted")
