// @aws-sdk/client-kms against mock-kms and a real proxy: store, key, cryptography, errors.
import assert from "node:assert/strict";
import { setTimeout } from "node:timers/promises";

import * as kms from "@aws-sdk/client-kms";

const client = new kms.KMSClient({ maxAttempts: 1 });
const send = (command) => client.send(command);

const { CustomKeyStoreId } = await send(
  new kms.CreateCustomKeyStoreCommand({
    CustomKeyStoreName: "client-kms",
    CustomKeyStoreType: "EXTERNAL_KEY_STORE",
    XksProxyConnectivity: "PUBLIC_ENDPOINT",
    XksProxyUriEndpoint: "https://localhost",
    XksProxyUriPath: process.env.XKS_URI_PATH,
    XksProxyAuthenticationCredential: {
      AccessKeyId: process.env.XKS_ACCESS_KEY_ID,
      RawSecretAccessKey: process.env.XKS_SECRET_ACCESS_KEY,
    },
  }),
);
await send(new kms.ConnectCustomKeyStoreCommand({ CustomKeyStoreId }));
let store;
do {
  await setTimeout(10);
  const answer = await send(new kms.DescribeCustomKeyStoresCommand({ CustomKeyStoreId }));
  store = answer.CustomKeyStores[0];
} while (store.ConnectionState === "CONNECTING");
assert.equal(store.ConnectionState, "CONNECTED");

const { KeyMetadata } = await send(
  new kms.CreateKeyCommand({ Origin: "EXTERNAL_KEY_STORE", CustomKeyStoreId, XksKeyId: "demo" }),
);
assert.equal(KeyMetadata.XksKeyConfiguration.Id, "demo");
assert.ok(KeyMetadata.CreationDate instanceof Date);
const KeyId = KeyMetadata.Arn;
const EncryptionContext = { b: "2", a: "1" };
const Plaintext = new Uint8Array(4096).fill(7);
const { CiphertextBlob } = await send(new kms.EncryptCommand({ KeyId, Plaintext, EncryptionContext }));
const decrypted = await send(new kms.DecryptCommand({ CiphertextBlob, EncryptionContext: { a: "1", b: "2" } }));
assert.deepEqual(new Uint8Array(decrypted.Plaintext), Plaintext);
const dataKey = await send(new kms.GenerateDataKeyCommand({ KeyId, KeySpec: "AES_256" }));
assert.equal(dataKey.Plaintext.length, 32);

await assert.rejects(send(new kms.DecryptCommand({ CiphertextBlob })), (error) => {
  assert.ok(error instanceof kms.KMSInvalidStateException);
  assert.match(error.message, /ciphertext or encryption context is corrupted/);
  assert.equal(error.$metadata.requestId.length, 36);
  return true;
});
await assert.rejects(
  send(new kms.CreateKeyCommand({ Origin: "EXTERNAL_KEY_STORE", CustomKeyStoreId, XksKeyId: "absent" })),
  kms.XksKeyNotFoundException,
);
await send(new kms.DisableKeyCommand({ KeyId }));
await assert.rejects(send(new kms.EncryptCommand({ KeyId, Plaintext })), kms.DisabledException);
await send(new kms.DisconnectCustomKeyStoreCommand({ CustomKeyStoreId }));
console.log("@aws-sdk/client-kms is served");
