"""boto3 against mock-kms and a real proxy: store life cycle, keys, cryptography, errors."""

import os
import time

import boto3
import botocore
from botocore.exceptions import ClientError

KMS = boto3.client("kms", config=botocore.config.Config(retries={"total_max_attempts": 1}))
CREDENTIAL = {
    "AccessKeyId": os.environ["XKS_ACCESS_KEY_ID"],
    "RawSecretAccessKey": os.environ["XKS_SECRET_ACCESS_KEY"],
}


def fails(exception, message, call, **arguments):
    """The call must fail with that exception, as the class that the service model declares where it does."""
    try:
        call(**arguments)
    except ClientError as error:
        found = error.response["Error"]
        assert found["Code"] == exception, (exception, found)
        assert message in found["Message"], (message, found)
        if hasattr(KMS.exceptions, exception):
            assert isinstance(error, getattr(KMS.exceptions, exception))
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 400
        assert len(error.response["ResponseMetadata"]["RequestId"]) == 36
        return
    raise AssertionError(f"{call} did not fail with {exception}")


def settled(store):
    while True:
        entry = KMS.describe_custom_key_stores(CustomKeyStoreId=store)["CustomKeyStores"][0]
        if entry["ConnectionState"] not in ("CONNECTING", "DISCONNECTING"):
            return entry
        time.sleep(0.01)


def new_store(**changes):
    members = {
        "CustomKeyStoreName": "boto3",
        "CustomKeyStoreType": "EXTERNAL_KEY_STORE",
        "XksProxyConnectivity": "PUBLIC_ENDPOINT",
        "XksProxyUriEndpoint": "https://localhost",
        "XksProxyUriPath": os.environ["XKS_URI_PATH"],
        "XksProxyAuthenticationCredential": CREDENTIAL,
    }
    return KMS.create_custom_key_store(**{**members, **changes})["CustomKeyStoreId"]


def callers():
    """Only who is configured may call."""
    for access_key, secret, exception in [
        ("AKIDNOBODY", "x", "UnrecognizedClientException"),
        (os.environ["AWS_ACCESS_KEY_ID"], "wrong", "InvalidSignatureException"),
    ]:
        stranger = boto3.client("kms", aws_access_key_id=access_key, aws_secret_access_key=secret)
        fails(exception, "", stranger.list_keys)


def stores():
    wrong = {**CREDENTIAL, "RawSecretAccessKey": "x" * 43}
    fails(
        "XksProxyIncorrectAuthenticationCredentialException",
        "could not authenticate AWS KMS",
        new_store,
        XksProxyAuthenticationCredential=wrong,
    )
    fails("XksProxyInvalidConfigurationException", "invalid URI path", new_store, XksProxyUriPath="/no/kms/xks/v1")
    store = new_store()
    fails("CustomKeyStoreNameInUseException", "boto3", new_store, XksProxyUriPath="/other/kms/xks/v1")
    fails("XksProxyUriInUseException", "", new_store, CustomKeyStoreName="other")
    entry = settled(store)
    assert entry["ConnectionState"] == "DISCONNECTED"
    assert entry["XksProxyConfiguration"]["AccessKeyId"] == CREDENTIAL["AccessKeyId"]
    assert "RawSecretAccessKey" not in str(entry)
    KMS.connect_custom_key_store(CustomKeyStoreId=store)
    assert settled(store)["ConnectionState"] == "CONNECTED"
    KMS.update_custom_key_store(CustomKeyStoreId=store, NewCustomKeyStoreName="renamed")
    pages = KMS.get_paginator("describe_custom_key_stores").paginate()
    assert [entry["CustomKeyStoreName"] for page in pages for entry in page["CustomKeyStores"]] == ["renamed"]
    return store


def new_key(store, xks_key_id, **more):
    key = KMS.create_key(Origin="EXTERNAL_KEY_STORE", CustomKeyStoreId=store, XksKeyId=xks_key_id, **more)
    return key["KeyMetadata"]


def keys(store):
    key = new_key(store, "demo", Description="from boto3", Tags=[{"TagKey": "a", "TagValue": "b"}])
    assert key["XksKeyConfiguration"] == {"Id": "demo"}
    assert key["KeyState"] == "Enabled" and key["CreationDate"].year >= 2022
    arn = key["Arn"]
    fails("XksKeyAlreadyInUseException", "demo", new_key, store=store, xks_key_id="demo")
    fails("XksKeyInvalidConfigurationException", "must be AES_256", new_key, store=store, xks_key_id="aes-128")
    fails("XksKeyInvalidConfigurationException", "ENCRYPT and DECRYPT", new_key, store=store, xks_key_id="encrypt-only")
    fails("XksKeyNotFoundException", "was not found", new_key, store=store, xks_key_id="absent")
    KMS.create_alias(AliasName="alias/boto3", TargetKeyId=arn)
    for name in (key["KeyId"], arn, "alias/boto3", arn.split(":key/")[0] + ":alias/boto3"):
        assert KMS.describe_key(KeyId=name)["KeyMetadata"]["Arn"] == arn
    assert KMS.list_resource_tags(KeyId=arn)["Tags"] == [{"TagKey": "a", "TagValue": "b"}]
    KMS.disable_key(KeyId=arn)
    fails("DisabledException", f"{arn} is disabled.", KMS.encrypt, KeyId=arn, Plaintext=b"x")
    KMS.enable_key(KeyId=arn)
    for _ in range(7):
        KMS.create_key()
    listed = [key["KeyId"] for page in KMS.get_paginator("list_keys").paginate(PaginationConfig={"PageSize": 3}) for key in page["Keys"]]
    assert len(listed) == len(set(listed)) == 8
    fails("UnsupportedOperationException", "origin is EXTERNAL_KEY_STORE", KMS.get_key_rotation_status, KeyId=arn)
    assert '"kms:*"' in KMS.get_key_policy(KeyId=arn, PolicyName="default")["Policy"]
    return arn


def cryptography(arn):
    for plaintext in (b"x", bytes(range(256)) * 16):
        blob = KMS.encrypt(KeyId=arn, Plaintext=plaintext, EncryptionContext={"a": "1", "b": "2"})["CiphertextBlob"]
        # A single byte is in most blobs by chance.
        assert len(plaintext) == 1 or plaintext not in blob
        assert len(blob) <= 6144
        answer = KMS.decrypt(CiphertextBlob=blob, EncryptionContext={"b": "2", "a": "1"})
        assert answer["Plaintext"] == plaintext and answer["KeyId"] == arn
        refused = "specified ciphertext or encryption context is corrupted"
        fails("KMSInvalidStateException", refused, KMS.decrypt, CiphertextBlob=blob, EncryptionContext={"A": "1"})
    data_key = KMS.generate_data_key(KeyId="alias/boto3", KeySpec="AES_256")
    assert KMS.decrypt(CiphertextBlob=data_key["CiphertextBlob"])["Plaintext"] == data_key["Plaintext"]
    KMS.generate_data_key_without_plaintext(KeyId=arn, NumberOfBytes=64)
    plain = KMS.create_key()["KeyMetadata"]["Arn"]
    moved = KMS.re_encrypt(CiphertextBlob=data_key["CiphertextBlob"], DestinationKeyId=plain)
    assert (moved["SourceKeyId"], moved["KeyId"]) == (arn, plain)
    back = KMS.re_encrypt(CiphertextBlob=moved["CiphertextBlob"], DestinationKeyId=arn)
    assert KMS.decrypt(CiphertextBlob=back["CiphertextBlob"])["Plaintext"] == data_key["Plaintext"]
    assert len(KMS.generate_random(NumberOfBytes=32)["Plaintext"]) == 32
    fails("DryRunOperationException", "DryRun", KMS.encrypt, KeyId=arn, Plaintext=b"x", DryRun=True)
    fails("ValidationException", "'plaintext'", KMS.encrypt, KeyId=arn, Plaintext=b"")
    fails("InvalidCiphertextException", "", KMS.decrypt, CiphertextBlob=b"no blob")


def end(store, arn):
    KMS.disconnect_custom_key_store(CustomKeyStoreId=store)
    assert KMS.describe_key(KeyId=arn)["KeyMetadata"]["KeyState"] == "Unavailable"
    fails("KMSInvalidStateException", "is not connected", KMS.encrypt, KeyId=arn, Plaintext=b"x")
    fails("CustomKeyStoreHasCMKsException", "", KMS.delete_custom_key_store, CustomKeyStoreId=store)
    deletion = KMS.schedule_key_deletion(KeyId=arn, PendingWindowInDays=7)
    assert deletion["KeyState"] == "PendingDeletion"
    KMS.cancel_key_deletion(KeyId=arn)
    KMS.connect_custom_key_store(CustomKeyStoreId=store)
    assert settled(store)["ConnectionState"] == "CONNECTED"
    assert KMS.describe_key(KeyId=arn)["KeyMetadata"]["KeyState"] == "Disabled"


callers()
STORE = stores()
KEY = keys(STORE)
cryptography(KEY)
end(STORE, KEY)
print("boto3", boto3.__version__, "is served")
