//! Requirements that bind the proxy and that no case checks, each with the reason.

const LOG: &str = "the log cannot be read from outside";
const POLICY: &str =
    "what else a policy may look at, and in which language, is the vendor's choice: nobody breaks it";
const INSIDE: &str = "happens between proxy and key manager, where nobody outside looks";
const CONSOLE: &str = "concerns a user interface or a file, not the endpoint";
const QUOTA: &str =
    "a quota cannot be provoked without knowing it; the form of any refusal is checked with all errors";

/// Id and reason.
pub const NOT_CHECKED: &[(&str, &str)] = &[
    ("AUTH-CRED-002", INSIDE),
    ("AUTHZ-INPUT-001", POLICY),
    ("AUTHZ-LOG-001", LOG),
    ("AUTHZ-POLICY-004", POLICY),
    ("DEC-LOG-001", LOG),
    ("DEC-REQID-001", LOG),
    ("DEC-SECRET-001", LOG),
    ("ENC-CDIV-014", INSIDE),
    (
        "ENC-FRAME-001",
        "the framing is inside the tag; that AAD and metadata cannot be confused is checked by ENC-FRAME-003",
    ),
    ("ENC-FRAME-004", "needs a ciphertext of the proxy's earlier release"),
    ("ENC-LOG-001", LOG),
    ("ENC-REQID-001", LOG),
    ("ERR-THROTTLE-002", QUOTA),
    (
        "ERR-UNSUPPORTED-001",
        "every operation that has a path must be implemented: there is none to be refused",
    ),
    ("HEALTH-DEEP-004", INSIDE),
    ("HEALTH-DEEP-005", INSIDE),
    ("HEALTH-LOG-001", LOG),
    (
        "HEALTH-MODEL-002",
        "what helps to troubleshoot is for people to judge; that there is a model is checked",
    ),
    ("HEALTH-REQID-001", LOG),
    ("LOG-CLOUDWATCH-001", LOG),
    ("LOG-DENY-001", LOG),
    ("LOG-EKM-001", LOG),
    ("LOG-INTEG-001", LOG),
    ("LOG-META-001", LOG),
    ("LOG-RESULT-001", LOG),
    ("LOG-RESULT-002", LOG),
    ("LOG-TIME-001", LOG),
    ("META-LOG-001", LOG),
    ("META-REQID-001", LOG),
    ("OPS-CONSOLE-001", CONSOLE),
    ("OPS-CONSOLE-002", CONSOLE),
    ("OPS-CONSOLE-003", CONSOLE),
    ("OPS-CONSOLE-004", CONSOLE),
    ("OPS-CONSOLE-005", CONSOLE),
    ("URI-KEYID-001", "that two keys do not share an id cannot be told from their answers"),
    ("URI-QUOTA-001", QUOTA),
];
