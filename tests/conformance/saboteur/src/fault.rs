//! The mistakes, each one that an implementer could make.

/// Writes the enum and what is known of each fault from one table: variant, name, requirement ids, what is wrong.
macro_rules! faults {
    ($($variant:ident $name:literal [$($requirement:literal),+] $description:literal)+) => {
        /// One mistake that can be switched on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Fault {
            $(#[doc = $description] $variant,)+
        }

        impl Fault {
            /// Every fault, in the order of the table: transport, HTTP, errors, authentication, mTLS, key metadata,
            /// request bodies, Encrypt, Decrypt, keys, stores and policies, health.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name on the command line and in reports, in kebab case.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// The ids, in `xks-spec/README.md`, of the requirements that the fault breaks.
            #[must_use]
            pub const fn requirements(self) -> &'static [&'static str] {
                match self { $(Self::$variant => &[$($requirement),+]),+ }
            }

            /// What the proxy does wrong, in a sentence.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => $description),+ }
            }
        }
    };
}

impl Fault {
    /// The fault of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|fault| fault.name() == name)
    }
}

faults! {
    // Transport
    Tls10Accepted "tls-1-0-accepted" ["TRANS-TLS-001"]
        "A client that offers TLS 1.0 at best gets a ServerHello of TLS 1.0."
    Tls11Accepted "tls-1-1-accepted" ["TRANS-TLS-001"]
        "A client that offers TLS 1.1 at best gets a ServerHello of TLS 1.1."
    WeakSuiteAccepted "weak-suite-accepted" ["TRANS-CIPHER-001"]
        "A TLS 1.2 client that offers none of the specification's suites gets one of old, such as AES-CBC with RSA key exchange."
    RequiredSuitesMissing "required-suites-missing" ["TRANS-CIPHER-001"]
        "Only suites with AES-128 are served, none of the four of the specification."
    Http1Refused "http1-refused" ["TRANS-ALPN-001", "TRANS-HTTP-002"]
        "ALPN knows h2 alone: a client that offers http/1.1 is turned away."
    Http2WithoutAlpn "http2-without-alpn" ["TRANS-ALPN-001"]
        "A client that offers no ALPN is spoken to in HTTP/2."
    CleartextServed "cleartext-served" ["TRANS-HTTP-001"]
        "The port answers HTTP without TLS too."
    ServerCertificateExpired "server-certificate-expired" ["TRANS-CERT-001"]
        "The server certificate ran out a day ago."
    ServerCertificateOfAnotherName "server-certificate-of-another-name" ["TRANS-CERT-002"]
        "The server certificate names another host."
    ServerCertificateSelfSigned "server-certificate-self-signed" ["TRANS-CERT-003"]
        "The server certificate is signed by itself."
    IntermediateMissing "intermediate-missing" ["TRANS-CERT-003"]
        "The server sends its certificate without the intermediate one that issued it."
    HandshakeInAcceptLoop "handshake-in-accept-loop" ["META-TIME-001", "ENC-TIME-001", "DEC-TIME-001", "HEALTH-TIME-001"]
        "The accept loop waits for each TLS handshake, so that one silent client keeps out everybody."
    OneRequestAtATime "one-request-at-a-time" ["ENC-TIME-001", "DEC-TIME-001"]
        "A lock lets one request at a time through, for 40 ms each: concurrent ones are answered too late."
    AnswersLate "answers-late" ["META-TIME-001", "ENC-TIME-001", "DEC-TIME-001", "HEALTH-TIME-001"]
        "Every answer takes 400 ms, longer than KMS waits."
    SomeAnswersLate "some-answers-late" ["ENC-TIME-001", "DEC-TIME-001"]
        "Every 25th answer of Encrypt and Decrypt takes 400 ms, as where a pause of the process or of the HSM stops everything."
    ConnectionForOneAnswer "connection-for-one-answer" ["META-TIME-001"]
        "Every connection ends with its first answer: KMS pays for a TLS handshake with each request."
    // HTTP
    GetIsNotFound "get-is-not-found" ["META-METHOD-001", "ENC-METHOD-001", "DEC-METHOD-001", "HEALTH-METHOD-001"]
        "GET on an operation's path is answered with 404 instead of 405."
    GetIsServed "get-is-served" ["META-METHOD-001", "HEALTH-METHOD-001"]
        "GET on an operation's path is served as if it were POST."
    SuccessAsText "success-as-text" ["TRANS-JSON-002"]
        "Successful answers are labelled text/plain."
    ErrorAsText "error-as-text" ["TRANS-JSON-002"]
        "Errors are labelled text/plain."
    AnyPrefix "any-prefix" ["URI-PATH-001", "ERR-PATH-001"]
        "The path before /kms/xks/v1 is matched by its beginning: /alpha/more is served as /alpha."
    UnknownPathAsKeyNotFound "unknown-path-as-key-not-found" ["ERR-PATH-001"]
        "A path that names no operation is answered with KeyNotFoundException."
    LongUriRefused "long-uri-refused" ["URI-SIZE-002"]
        "A path of more than 128 characters is answered with 414, though an externalKeyId alone may have as many."
    LongKeyIdRefused "long-key-id-refused" ["URI-KEYID-006"]
        "An externalKeyId of more than 64 characters is no path."
    PeriodInKeyIdRefused "period-in-key-id-refused" ["URI-KEYID-007"]
        "An externalKeyId with a period, allowed since version 0.9.7, is no path."
    KeyIdWithoutCase "key-id-without-case" ["URI-KEYID-005"]
        "An externalKeyId is looked up without regard to upper and lower case."
    KeyIdByPrefix "key-id-by-prefix" ["URI-KEYID-005", "ERR-KEY-001"]
        "An unknown externalKeyId that begins with that of a key finds that key."
    QueryIgnored "query-ignored" ["AUTH-CANON-003", "AUTH-MATCH-001"]
        "A query is dropped before the signature is checked, so that anybody may append one."
    SmallBodyCap "small-body-cap" ["ENC-SIZE-001", "ENC-AAD-005", "DEC-SIZE-001", "DEC-AAD-005"]
        "A body of more than 16,000 bytes is refused: the largest plaintext and AAD do not fit in together."
    BothLengthsKeptAlive "both-lengths-kept-alive" ["TRANS-HTTP-002"]
        "A connection goes on after a request with Content-Length and Transfer-Encoding, which may hide another request."
    ChunkedBodyRefused "chunked-body-refused" ["TRANS-HTTP-002"]
        "A body in chunks is refused with 411, which HTTP/1.1 does not allow a server that takes bodies."
    // Errors
    HtmlErrors "html-errors" ["ERR-BODY-001", "TRANS-JSON-002"]
        "An unknown path or method gets the web framework's HTML page."
    ErrorNameMissing "error-name-missing" ["ERR-BODY-001"]
        "The body of an error says type and message instead of errorName and errorMessage."
    ErrorsWithStatus200 "errors-with-status-200" ["ERR-VALIDATION-001", "ERR-KEY-001", "ERR-AUTH-001"]
        "Errors are answered with status 200, the errorName being in the body."
    LongErrorMessage "long-error-message" ["ERR-MSG-001"]
        "errorMessage is a stack trace of 600 characters."
    NonAsciiErrorMessage "non-ascii-error-message" ["ERR-MSG-002"]
        "errorMessage has typographic quotes and a line break."
    RequestInErrorMessage "request-in-error-message" ["LOG-SECRET-001", "ENC-SECRET-001"]
        "errorMessage quotes the request's body, plaintext included."
    OversizeAsInternalError "oversize-as-internal-error" ["ERR-UNSUPPORTED-002"]
        "A value larger than the proxy supports is answered with 500 InternalException."
    OversizeCut "oversize-cut" ["ERR-UNSUPPORTED-002"]
        "A value larger than the proxy supports is cut to that length, and what is behind it forgotten."
    BadJsonAsInternalError "bad-json-as-internal-error" ["ERR-VALIDATION-001"]
        "A body that is no JSON is answered with 500 InternalException."
    UnknownKeyAsValidationError "unknown-key-as-validation-error" ["ERR-KEY-001"]
        "An unknown key is answered with 400 ValidationException."
    // Authentication
    SignatureUnchecked "signature-unchecked" ["AUTH-MATCH-001", "AUTH-KEY-003", "AUTH-SIG-001"]
        "A known access key id is enough: the signature is not compared."
    SignatureByPrefix "signature-by-prefix" ["AUTH-MATCH-001"]
        "Only the first eight characters of the signature are compared."
    ExpectedSignatureShown "expected-signature-shown" ["ERR-AUTH-001", "AUTH-MATCH-001"]
        "errorMessage shows the signature that would have been right, so that anybody can sign."
    HostNotSigned "host-not-signed" ["AUTH-SIGNED-002"]
        "A signature that does not cover host is accepted."
    DateNotSigned "date-not-signed" ["AUTH-SIGNED-003"]
        "A signature that does not cover x-amz-date is accepted."
    DateUnchecked "date-unchecked" ["AUTH-SKEW-001", "AUTH-SKEW-002", "AUTH-SKEW-003"]
        "A request of any age is accepted."
    FifteenMinutes "fifteen-minutes" ["AUTH-SKEW-002", "AUTH-SKEW-003"]
        "A request may be 15 minutes old or ahead, as in other AWS services."
    FutureUnchecked "future-unchecked" ["AUTH-SKEW-003"]
        "Only the age of a request is checked: one from the future is accepted."
    ScopeDateUnchecked "scope-date-unchecked" ["AUTH-SCOPE-003"]
        "The day of the credential scope may be another than that of x-amz-date."
    ScopeServiceUnchecked "scope-service-unchecked" ["AUTH-SCOPE-002"]
        "A signature for any service is accepted, kms among them."
    ScopeEndUnchecked "scope-end-unchecked" ["AUTH-SCOPE-001"]
        "The credential scope may end in anything."
    RegionAssumed "region-assumed" ["AUTH-KEY-001"]
        "The signing key is made for us-east-1 whatever Region the scope names."
    AlgorithmUnchecked "algorithm-unchecked" ["AUTH-ALG-001"]
        "The name of the algorithm is not looked at."
    PayloadHashFromHeader "payload-hash-from-header" ["AUTH-HASH-001"]
        "The body's hash is taken from x-amz-content-sha256 without looking at the body."
    UnsignedPayload "unsigned-payload" ["AUTH-HASH-001"]
        "UNSIGNED-PAYLOAD in x-amz-content-sha256 is accepted, as in S3."
    ChunkedBodyUnsigned "chunked-body-unsigned" ["AUTH-HASH-001"]
        "A body in chunks has no hash when the head comes, so that the signature of such a request is not compared."
    AuthorizationCached "authorization-cached" ["AUTH-CANON-002", "AUTH-HASH-001", "AUTH-MATCH-001"]
        "An Authorization header that was right once is right for every path and body."
    FurtherSignedHeadersRefused "further-signed-headers-refused" ["AUTH-CANON-004", "AUTH-SIG-002"]
        "Only host;x-amz-date may be signed: curl, which signs content-type too, is refused."
    FirstSignedValueAlone "first-signed-value-alone" ["AUTH-CANON-004"]
        "Of a signed header that is there twice, the first value alone is verified: the second can be changed."
    AuthorityNotHost "authority-not-host" ["AUTH-CANON-005"]
        "Over HTTP/2 the canonical request has an empty host: no request authenticates."
    AuthorizationMissingAs400 "authorization-missing-as-400" ["AUTH-HEADER-002", "ERR-AUTH-001"]
        "A request without an Authorization header is answered with 400 ValidationException."
    MalformedAuthorizationCrashes "malformed-authorization-crashes" ["AUTH-HEADER-002", "ERR-AUTH-001"]
        "An Authorization header of an unexpected form ends the connection without an answer."
    AuthenticationErrorAs403 "authentication-error-as-403" ["ERR-AUTH-001"]
        "An invalid signature is answered with 403 AccessDeniedException."
    HealthUnauthenticated "health-unauthenticated" ["AUTH-SIG-001"]
        "GetHealthStatus is answered without a signature."
    MetadataUnauthenticated "metadata-unauthenticated" ["AUTH-SIG-001"]
        "GetKeyMetadata is answered without a signature."
    KeyOracle "key-oracle" ["ERR-AUTH-001", "AUTH-SIG-001"]
        "The key is looked up before the signature: anybody can find out which keys exist."
    KeyOracleInMessage "key-oracle-in-message" ["ERR-AUTH-001", "AUTH-SIG-001"]
        "The errorMessage of an invalid signature says whether the key exists."
    BodyCheckedBeforeSignature "body-checked-before-signature" ["ERR-AUTH-001", "AUTH-SIG-001"]
        "The body is parsed before the signature: anybody reaches the JSON parser."
    CredentialOfAnyStore "credential-of-any-store" ["URI-PREFIX-001", "AUTH-CRED-010"]
        "The credential of one store opens every other."
    AccessKeyIdIgnored "access-key-id-ignored" ["AUTH-ROT-003", "AUTH-KEY-002"]
        "Every secret of the store is tried, whatever access key id the request names."
    SecondCredentialRefused "second-credential-refused" ["AUTH-ROT-001"]
        "A store takes one credential: a second one beside it is refused."
    RotationNeedsRestart "rotation-needs-restart" ["AUTH-ROT-002"]
        "New credentials are read at the start only."
    RemovedCredentialAccepted "removed-credential-accepted" ["AUTH-ROT-004"]
        "A credential that was removed goes on working."
    // mTLS
    ClientCertificateOptional "client-certificate-optional" ["AUTH-MTLS-001"]
        "With mTLS, a client that shows no certificate is served."
    ClientNameUnchecked "client-name-unchecked" ["AUTH-MTLS-004"]
        "With mTLS, any certificate of the right authority is accepted."
    ClientNameByEnding "client-name-by-ending" ["AUTH-MTLS-004"]
        "With mTLS, a common name that ends in the expected one is accepted."
    ClientNameOfAnyRegion "client-name-of-any-region" ["AUTH-MTLS-004"]
        "With mTLS, KMS of any Region is accepted."
    AnyClientNameOfSeveral "any-client-name-of-several" ["AUTH-MTLS-004"]
        "With mTLS, a certificate with several common names is accepted if one of them is right."
    ClientIssuerUnchecked "client-issuer-unchecked" ["AUTH-MTLS-005"]
        "With mTLS, the authority behind the client's certificate is not checked."
    ExpiredClientAccepted "expired-client-accepted" ["AUTH-MTLS-005"]
        "With mTLS, a client certificate that has run out is accepted."
    // Key metadata
    KeySpecWrong "key-spec-wrong" ["META-RESP-002", "META-READY-001"]
        "keySpec is AES-256 instead of AES_256."
    KeySpecMissing "key-spec-missing" ["META-RESP-001"]
        "GetKeyMetadata says nothing of keySpec."
    KeyUsageEmpty "key-usage-empty" ["META-USAGE-001", "META-USAGE-002"]
        "keyUsage is empty for every key."
    KeyUsageLowerCase "key-usage-lower-case" ["META-USAGE-001", "META-USAGE-002"]
        "keyUsage says encrypt and decrypt in lower case."
    KeyUsageAsText "key-usage-as-text" ["META-RESP-003"]
        "keyUsage is one string with commas instead of an array."
    KeyUsageOfEleven "key-usage-of-eleven" ["META-USAGE-004"]
        "keyUsage lists all eleven usages of PKCS#11."
    KeyUsageConstant "key-usage-constant" ["META-USAGE-001", "META-USAGE-002"]
        "keyUsage is ENCRYPT and DECRYPT for every key, whatever it may do."
    KeyStatusUnknown "key-status-unknown" ["META-STATUS-001"]
        "keyStatus is ACTIVE."
    KeyStatusConstant "key-status-constant" ["META-STATUS-003"]
        "keyStatus is ENABLED for a disabled key too."
    // Request bodies
    UnknownFieldRefused "unknown-field-refused" ["META-NEW-001", "ENC-NEW-001", "DEC-NEW-001", "HEALTH-NEW-001"]
        "A member of requestMetadata that the specification does not name is refused."
    UnlistedOperationRefused "unlisted-operation-refused" ["META-OPNAME-001", "ENC-OPNAME-001", "DEC-OPNAME-001", "HEALTH-OPNAME-001"]
        "A kmsOperation that the specification does not list is refused."
    RequestIdMustBeUuid "request-id-must-be-uuid" ["META-REQID-002", "ENC-REQID-002", "DEC-REQID-002", "HEALTH-REQID-002"]
        "A kmsRequestId that is no UUID is refused."
    PrincipalMustBeArn "principal-must-be-arn" ["META-RMD-002", "ENC-RMD-002", "DEC-RMD-002"]
        "An awsPrincipalArn that is no ARN, such as AWS Internal, is refused."
    LongArnRefused "long-arn-refused" ["REQ-ARN-001", "REQ-ARN-002"]
        "An ARN of more than 1024 characters is refused."
    ViaServiceRequired "via-service-required" ["ENC-RMD-009", "DEC-RMD-009"]
        "Encrypt and Decrypt want kmsViaService, which is optional."
    KeyArnRequired "key-arn-required" ["META-RMD-007"]
        "GetKeyMetadata wants kmsKeyArn, which CreateKey cannot send."
    HealthWantsPrincipal "health-wants-principal" ["ERR-VALIDATION-002"]
        "GetHealthStatus wants awsPrincipalArn, which KMS does not send."
    TrailingJsonAccepted "trailing-json-accepted" ["ERR-VALIDATION-001"]
        "What follows the JSON object is ignored."
    UrlSafeAccepted "url-safe-accepted" ["ENC-BASE64-001", "DEC-BASE64-001"]
        "Base64 with - and _ is accepted."
    LooseBase64Accepted "loose-base64-accepted" ["ENC-BASE64-001", "DEC-BASE64-001", "ENC-AAD-003", "DEC-AAD-003"]
        "Characters that are not Base64 are skipped and padding is optional, as in MIME."
    AlgorithmNotRequired "algorithm-not-required" ["ENC-FIELD-002", "DEC-FIELD-002"]
        "encryptionAlgorithm may be absent."
    OtherAlgorithmAccepted "other-algorithm-accepted" ["ENC-ALG-001", "DEC-ALG-001"]
        "Any encryptionAlgorithm is accepted, and AES-GCM used."
    AadRequired "aad-required" ["ENC-AAD-002", "DEC-AAD-002"]
        "additionalAuthenticatedData must be there."
    PlaintextOf4096 "plaintext-of-4096" ["ENC-SIZE-001", "DEC-SIZE-001"]
        "Plaintexts and ciphertexts end at 4096 bytes, as those of the KMS API do."
    AadOf4096 "aad-of-4096" ["ENC-AAD-005", "DEC-AAD-005"]
        "AAD ends at 4096 bytes."
    // Encrypt
    AadIgnored "aad-ignored" ["ENC-AAD-004", "DEC-AAD-004", "DEC-AAD-006"]
        "AAD is left out of the AES-GCM operation."
    AadCutTo1024 "aad-cut-to-1024" ["ENC-AAD-004", "DEC-AAD-004", "DEC-AAD-006"]
        "Only the first 1024 bytes of the AAD go into the AES-GCM operation."
    AadNotFramed "aad-not-framed" ["ENC-FRAME-001", "ENC-FRAME-003"]
        "AAD and ciphertextMetadata are joined without their lengths: bytes can move from one to the other."
    MetadataNotBound "metadata-not-bound" ["ENC-CTMD-004", "DEC-CTMD-003"]
        "ciphertextMetadata is left out of the AAD."
    MetadataTooLong "metadata-too-long" ["ENC-CTMD-002"]
        "ciphertextMetadata has 21 bytes."
    MetadataNotBase64 "metadata-not-base64" ["ENC-CTMD-003"]
        "ciphertextMetadata is plain text."
    UrlSafeAnswers "url-safe-answers" ["ENC-BASE64-002", "DEC-BASE64-002"]
        "Answers have Base64 with - and _."
    UnpaddedAnswers "unpadded-answers" ["ENC-BASE64-002", "DEC-BASE64-002"]
        "Answers have Base64 without padding."
    IvOf13Bytes "iv-of-13-bytes" ["ENC-IV-001", "DEC-IV-002"]
        "IVs have 13 bytes."
    IvConstant "iv-constant" ["ENC-GCM-001"]
        "Every encryption uses the same IV."
    IvReusedAfter1000 "iv-reused-after-1000" ["ENC-GCM-001"]
        "After 1000 encryptions the IVs begin anew."
    IvNotTheOneUsed "iv-not-the-one-used" ["ENC-IV-002", "DEC-RESP-002"]
        "The answer's IV is another than that of the encryption."
    TagOf12Bytes "tag-of-12-bytes" ["ENC-TAG-001"]
        "The tag is cut to 12 bytes, and accepted so."
    TagLeftOnCiphertext "tag-left-on-ciphertext" ["ENC-TAG-002", "ENC-SIZE-002"]
        "The tag that the HSM appends stays on the ciphertext, and is sent once more on its own."
    CiphertextPadded "ciphertext-padded" ["ENC-SIZE-002"]
        "The plaintext is padded with zeros to full blocks, as for CBC, and Decrypt takes them off."
    IntegrityValueMissing "integrity-value-missing" ["ENC-CDIV-004"]
        "No CDIV is returned where one is asked for."
    IntegrityValueRequired "integrity-value-required" ["ENC-CDIV-003"]
        "Encrypt wants a CDIV algorithm."
    IntegrityAlgorithmUnchecked "integrity-algorithm-unchecked" ["ENC-CDIV-001", "ENC-CDIV-006"]
        "Where another CDIV algorithm is asked for, SHA-256 is used."
    IntegrityValueInOtherOrder "integrity-value-in-other-order" ["ENC-CDIV-010"]
        "The CDIV has the IV before the AAD."
    IntegrityValueOfBase64 "integrity-value-of-base64" ["ENC-CDIV-009"]
        "The CDIV hashes Base64 texts instead of bytes."
    IntegrityValueWithoutAad "integrity-value-without-aad" ["ENC-CDIV-005"]
        "The CDIV leaves out the AAD."
    IntegrityValueWithoutMetadata "integrity-value-without-metadata" ["ENC-CDIV-005"]
        "The CDIV leaves out ciphertextMetadata."
    IntegrityValueWithLengths "integrity-value-with-lengths" ["ENC-CDIV-012"]
        "The CDIV hashes the framed AAD, lengths included."
    IntegrityValueInHex "integrity-value-in-hex" ["ENC-CDIV-005"]
        "The CDIV is hexadecimal."
    IntegrityValueUnverified "integrity-value-unverified" ["ENC-CDIV-008", "ENC-CDIV-013", "ENC-CDIV-015"]
        "The CDIV is returned without decrypting: one in fifty ciphertexts of this HSM is corrupt and cannot be opened."
    // Decrypt
    TagUnchecked "tag-unchecked" ["DEC-TAG-002", "DEC-CIPHERTEXT-001", "DEC-AAD-006", "DEC-IV-001", "DEC-CTMD-003"]
        "Decrypt does not compare the tag: altered ciphertexts give a plaintext."
    ShortTagAccepted "short-tag-accepted" ["DEC-TAG-001"]
        "Decrypt compares as many bytes of the tag as were sent, four at least."
    IvCutTo12 "iv-cut-to-12" ["DEC-IV-002"]
        "Decrypt takes the first 12 bytes of a longer IV."
    MetadataSelectsKey "metadata-selects-key" ["DEC-GCM-001", "URI-PREFIX-001"]
        "ciphertextMetadata alone selects the key, of whatever store, and the key in the path is not looked at."
    MetadataFilledIn "metadata-filled-in" ["DEC-CTMD-003"]
        "Decrypt puts in the metadata that the key would have where the request has none."
    AnyKeyTried "any-key-tried" ["DEC-GCM-001", "URI-KEYID-005"]
        "Decrypt tries every key of the store."
    BadTagAsValidationError "bad-tag-as-validation-error" ["ERR-CIPHERTEXT-001"]
        "An altered ciphertext is answered with ValidationException."
    BadTagAsInternalError "bad-tag-as-internal-error" ["ERR-CIPHERTEXT-001"]
        "An altered ciphertext is answered with 500 InternalException, which callers retry."
    PlaintextAsText "plaintext-as-text" ["DEC-RESP-002", "DEC-SIZE-002"]
        "Decrypt handles plaintexts as UTF-8 text: other bytes are replaced."
    // Keys
    UsageUnchecked "usage-unchecked" ["ERR-USAGE-001", "ERR-USAGE-002"]
        "A key does what it is not meant for."
    UsageAsAccessDenied "usage-as-access-denied" ["ERR-USAGE-001", "ERR-USAGE-002"]
        "A key that is not meant for the operation is answered with 403 AccessDeniedException."
    DisabledKeyServes "disabled-key-serves" ["ERR-STATE-001"]
        "A disabled key encrypts and decrypts."
    DisabledKeyAsNotFound "disabled-key-as-not-found" ["ERR-STATE-001"]
        "A disabled key is answered with 404 KeyNotFoundException."
    KeysOfAnyStore "keys-of-any-store" ["URI-PREFIX-001"]
        "Every store finds the keys of every other."
    OneKeyForAll "one-key-for-all" ["ENC-GCM-001", "DEC-GCM-001"]
        "All keys are one: the externalKeyId is only looked up, the first key always used."
    // Stores and policies
    DisabledStoreServes "disabled-store-serves" ["ERR-STATE-002"]
        "The keys of a disabled store go on to encrypt and decrypt."
    DisabledStoreDecrypts "disabled-store-decrypts" ["ERR-STATE-002"]
        "A disabled store refuses Encrypt alone: what it has encrypted stays open."
    DisabledStoreAsInvalidPath "disabled-store-as-invalid-path" ["ERR-STATE-002"]
        "A disabled store has no routes: its paths are answered with 404 InvalidUriPathException."
    DisabledStoreAsInternalError "disabled-store-as-internal-error" ["ERR-STATE-002"]
        "A disabled store is answered with 500 InternalException, which callers retry."
    StateBeforeSignature "state-before-signature" ["ERR-AUTH-001", "AUTH-SIG-001"]
        "That a store is disabled is said before the signature is looked at."
    PolicyUnchecked "policy-unchecked" ["ERR-DENIED-001", "AUTHZ-POLICY-002"]
        "Policies are loaded, and what they decide is only logged."
    PolicyForEncryptAlone "policy-for-encrypt-alone" ["ERR-DENIED-001", "AUTHZ-POLICY-002"]
        "Policies are asked about Encrypt alone: whom they refuse may decrypt."
    PolicyForEveryCaller "policy-for-every-caller" ["AUTHZ-POLICY-003"]
        "A policy's condition on the caller is not looked at: what is refused to one is refused to all."
    PolicyForHealth "policy-for-health" ["HEALTH-AUTHZ-001", "ERR-DENIED-002"]
        "Policies are asked about GetHealthStatus too."
    PolicyBeforeSignature "policy-before-signature" ["ERR-AUTH-001", "AUTH-SIG-001"]
        "Policies are asked before the signature is looked at: anybody can find out what they refuse."
    DeniedAsInvalidKeyUsage "denied-as-invalid-key-usage" ["ERR-DENIED-001"]
        "What a policy refuses is answered with 400 InvalidKeyUsageException."
    DeniedAsAuthenticationFailed "denied-as-authentication-failed" ["ERR-DENIED-001"]
        "What a policy refuses is answered with 401 AuthenticationFailedException, as if the credential were wrong."
    // Health and the key manager
    HealthConstant "health-constant" ["HEALTH-DEEP-001", "HEALTH-DEEP-002", "HEALTH-STATUS-002"]
        "GetHealthStatus is a constant: ACTIVE while the HSM fails."
    HealthCachedForEver "health-cached-for-ever" ["HEALTH-CACHE-002"]
        "GetHealthStatus returns the first result for ever."
    HealthStatusUnknown "health-status-unknown" ["HEALTH-STATUS-001"]
        "healthStatus is OK."
    FleetSizeZero "fleet-size-zero" ["HEALTH-RESP-002"]
        "xksProxyFleetSize counts from zero."
    FleetSizeAsText "fleet-size-as-text" ["HEALTH-RESP-002"]
        "xksProxyFleetSize is a string."
    EkmVendorMissing "ekm-vendor-missing" ["HEALTH-RESP-005"]
        "ekmVendor is left out, being the same as xksProxyVendor."
    FleetSizeOfThreads "fleet-size-of-threads" ["HEALTH-SIZE-001"]
        "xksProxyFleetSize counts the threads of a proxy, not the proxies."
    FleetOfSessions "fleet-of-sessions" ["HEALTH-FLEET-006"]
        "ekmFleetDetails has an entry for each session with the one key manager."
    FleetEmpty "fleet-empty" ["HEALTH-FLEET-005"]
        "ekmFleetDetails is empty."
    FleetOfEleven "fleet-of-eleven" ["HEALTH-FLEET-005"]
        "ekmFleetDetails has eleven entries."
    FleetIdMissing "fleet-id-missing" ["HEALTH-FLEET-001"]
        "The entries of ekmFleetDetails have no id."
    HsmFailureAsInvalidCiphertext "hsm-failure-as-invalid-ciphertext" ["ERR-INTERNAL-001"]
        "While the HSM fails, Decrypt says InvalidCiphertextException: the caller believes its data lost."
    HsmSilenceWaitedFor "hsm-silence-waited-for" ["ERR-TIMEOUT-001", "ENC-TIME-001", "DEC-TIME-001"]
        "The proxy waits for a silent HSM for as long as it takes."
}
