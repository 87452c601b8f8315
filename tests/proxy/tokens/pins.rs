//! A wrong PIN is given to a token once, whoever asks and however often the proxy is restarted: further tries lock it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use tempfile::TempDir;
use xks_harness::binary::program;
use xks_harness::token::PIN;
use xks_harness::{Faults, Function, Proxy, Setup, SoftHsm};

const WRONG: &str = "wrong-pin-4711";

/// A token, a PIN file and a state directory that outlive every process.
struct Desk {
    faults: Faults,
    setup: Setup,
    token: Arc<SoftHsm>,
    folder: TempDir,
}

impl Desk {
    fn new(pin: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let faults = Faults::new();
        faults.clear();
        let setup = Setup {
            pin: format!("pin = {{ file = {:?} }}", folder.path().join("pin")),
            more: format!("[state]\ndir = {:?}\n", folder.path().join("state")),
            ..Setup::default()
        };
        let setup = faults.between(setup);
        let desk = Self { faults, setup, token: Arc::new(SoftHsm::with_keys()), folder };
        desk.give(pin);
        desk
    }

    fn without_state(mut self) -> Self {
        self.setup.more = String::new();
        self
    }

    /// Changes the content of the PIN file.
    fn give(&self, pin: &str) {
        fs::write(self.folder.path().join("pin"), format!("{pin}\n")).unwrap();
    }

    fn serve(&self) -> Proxy {
        Proxy::start_without_waiting(&self.setup, Arc::clone(&self.token))
    }

    fn serve_with(&self, argument: &str) -> Proxy {
        let setup = Setup { arguments: vec![argument.to_owned()], ..self.setup.clone() };
        Proxy::start_without_waiting(&setup, Arc::clone(&self.token))
    }

    /// Runs a command; its exit code and what it said.
    fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let folder = tempfile::tempdir().unwrap();
        let configuration = self.setup.write(folder.path(), &self.token);
        let output = Command::new(program("xks-proxy"))
            .args(arguments)
            .arg("--config")
            .arg(configuration)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    }

    fn logins(&self) -> u64 {
        self.faults.calls(Function::Login)
    }

    fn state_files(&self) -> Vec<PathBuf> {
        let folder = self.folder.path().join("state/refused-pins");
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    fn record(&self) -> PathBuf {
        let mut files = self.state_files();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
        assert_eq!(files.len(), 1, "{files:?}");
        files.remove(0)
    }
}

/// Waits until the log says that the token cannot be used, and why.
fn wait_for_refusal(proxy: &Proxy, reason: &str) {
    let _ = proxy.wait_for_log(|line| {
        line["message"] == "the token is not usable"
            && line["reason"].as_str().is_some_and(|text| text.contains(reason))
    });
}

#[tokio::test]
async fn twenty_restarts_and_every_command_try_a_wrong_pin_once() {
    let desk = Desk::new(WRONG);
    for _ in 0..20 {
        let proxy = desk.serve();
        wait_for_refusal(&proxy, "refused the PIN with CKR_PIN_INCORRECT");
    }
    assert_eq!(desk.logins(), 1);
    for command in [
        &["check"][..],
        &["doctor"],
        &["keys", "list"],
        &["keys", "check"],
        &["keys", "create", "--token", "softhsm", "--label", "x"],
        &["keys", "rotate", "--store", "main", "--key", "demo"],
    ] {
        let (code, text) = desk.run(command);
        assert_eq!(code, Some(1), "{command:?} {text}");
        assert!(text.contains("refused the PIN with CKR_PIN_INCORRECT"), "{command:?} {text}");
        assert_eq!(desk.logins(), 1, "{command:?}");
    }
    // SoftHSM2 now says CKF_USER_PIN_COUNT_LOW: the wrong one was ours, and the new one is another.
    let proxy = desk.serve();
    wait_for_refusal(&proxy, "refused the PIN");
    desk.give(PIN);
    proxy.wait_until_ready().await;
    assert_eq!(desk.logins(), 2);
    assert!(!desk.state_files().iter().any(|file| file.extension().is_some_and(|is| is == "json")));
}

#[test]
fn each_command_remembers_a_refusal_for_all() {
    for command in [&["check"][..], &["doctor"], &["keys", "list"]] {
        let desk = Desk::new(WRONG);
        for next in [command, &["check"], &["keys", "list"], &["doctor"]] {
            let (code, text) = desk.run(next);
            assert_eq!(code, Some(1), "{next:?} {text}");
            assert_eq!(desk.logins(), 1, "{next:?} after {command:?}: {text}");
        }
    }
}

#[test]
fn a_second_wrong_pin_is_tried_once_too() {
    let desk = Desk::new(WRONG);
    for pin in [WRONG, "another-4712", WRONG, "another-4712"] {
        desk.give(pin);
        assert_eq!(desk.run(&["check"]).0, Some(1));
    }
    assert_eq!(desk.logins(), 2);
}

#[test]
fn what_is_remembered_holds_no_pin_and_is_its_owners_alone() {
    let desk = Desk::new(WRONG);
    desk.run(&["check"]);
    for file in desk.state_files() {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
        let text = fs::read_to_string(&file).unwrap();
        assert!(!text.contains(WRONG) && !text.contains("4711"), "{text}");
    }
    assert_eq!(mode(desk.record().parent().unwrap()), 0o700);
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_token_close_to_locking_its_pin_is_not_logged_in_to_unless_forced() {
    for flag in ["CKF_USER_PIN_COUNT_LOW", "CKF_USER_PIN_FINAL_TRY", "CKF_USER_PIN_LOCKED"] {
        let desk = Desk::new(PIN);
        desk.faults.set(&format!("C_GetTokenInfo token_flag={flag}"));
        let short = flag.trim_start_matches("CKF_USER_");
        for command in [&["check"][..], &["doctor"], &["keys", "list"]] {
            let (code, text) = desk.run(command);
            assert_eq!(code, Some(1), "{text}");
            assert!(text.contains(short), "{command:?} {text}");
        }
        let proxy = desk.serve();
        wait_for_refusal(&proxy, short);
        drop(proxy);
        assert_eq!(desk.logins(), 0, "{flag}");
        let (_, text) = desk.run(&["keys", "list", "--force-login"]);
        assert_eq!(desk.logins(), 1, "{text}");
        let proxy = desk.serve_with("--force-login");
        proxy.wait_until_ready().await;
        let _ = proxy.wait_for_log(|line| line["message"] == "a login is forced (--force-login)");
        assert_eq!(desk.logins(), 2);
    }
}

#[test]
fn a_final_try_is_not_risked_on_a_new_pin() {
    let desk = Desk::new(WRONG);
    desk.run(&["check"]);
    desk.give("another-4712");
    desk.faults.set("C_GetTokenInfo token_flag=CKF_USER_PIN_FINAL_TRY");
    desk.run(&["check"]);
    assert_eq!(desk.logins(), 1);
}

#[tokio::test]
async fn a_service_that_is_forced_does_not_try_a_refused_pin_again() {
    let desk = Desk::new(WRONG);
    for _ in 0..3 {
        let proxy = desk.serve_with("--force-login");
        wait_for_refusal(&proxy, "refused the PIN");
    }
    assert_eq!(desk.logins(), 1);
    // A person does, once a command.
    for tries in [2, 3] {
        desk.run(&["check", "--force-login"]);
        assert_eq!(desk.logins(), tries);
    }
}

#[tokio::test]
async fn a_forced_login_that_succeeds_lets_a_running_proxy_in() {
    let desk = Desk::new(PIN);
    desk.faults.set("C_Login fail=CKR_PIN_EXPIRED");
    let proxy = desk.serve();
    wait_for_refusal(&proxy, "CKR_PIN_EXPIRED");
    desk.faults.clear();
    let (_, text) = desk.run(&["check", "--force-login"]);
    assert!(text.contains("encrypts and decrypts"), "{text}");
    proxy.wait_until_ready().await;
    assert_eq!(desk.logins(), 3, "one that failed, one of the command, one more of the proxy");
}

#[tokio::test]
async fn a_damaged_record_keeps_the_pin_back_and_says_so() {
    let desk = Desk::new(WRONG);
    desk.run(&["check"]);
    let record = desk.record();
    fs::write(&record, "{").unwrap();
    desk.give(PIN);
    let proxy = desk.serve();
    wait_for_refusal(&proxy, "is not a record of refused PINs");
    let (code, text) = desk.run(&["check"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(&record.display().to_string()), "{text}");
    assert_eq!(desk.logins(), 1);
    desk.run(&["check", "--force-login"]);
    proxy.wait_until_ready().await;
}

#[tokio::test]
async fn where_nothing_can_be_remembered_nothing_is_tried() {
    let desk = Desk::new(PIN);
    fs::create_dir_all(desk.folder.path().join("state")).unwrap();
    fs::write(desk.folder.path().join("state/refused-pins"), "in the way").unwrap();
    let proxy = desk.serve();
    wait_for_refusal(&proxy, "could not be remembered");
    assert_eq!(desk.logins(), 0);
}

#[tokio::test]
async fn without_a_state_directory_the_process_remembers_and_check_says_so() {
    let desk = Desk::new(WRONG).without_state();
    let proxy = desk.serve();
    wait_for_refusal(&proxy, "refused the PIN");
    // The keeper tries again after 0.25, 0.5 and 1 s.
    desk.faults.wait_for("four tries to connect", |counts| counts.calls(Function::OpenSession) >= 4).await;
    assert_eq!(desk.logins(), 1);
    let (_, text) = desk.run(&["check"]);
    assert!(text.contains("without a state directory"), "{text}");
    // The token itself still tells of the wrong one.
    assert_eq!(desk.logins(), 1);
    desk.give(PIN);
    proxy.wait_until_ready().await;
    assert_eq!(desk.logins(), 2);
}

/// Why a PIN is kept back of which the token said nothing.
const NEVER_LEARNT: &str = "what the token said of it was never learnt";

#[tokio::test]
async fn a_wrong_pin_whose_refusal_nobody_waits_for_is_tried_twice_at_most() {
    for end in ["TERM", "KILL"] {
        let desk = Desk::new(WRONG);
        desk.faults.set("C_Login delay_ms=6000");
        for logins in [1, 2] {
            let mut proxy = desk.serve();
            desk.faults.wait_for("a login", |counts| counts.calls(Function::Login) == logins).await;
            proxy.signal(end);
            proxy.wait_for_exit();
        }
        let proxy = desk.serve();
        wait_for_refusal(&proxy, NEVER_LEARNT);
        drop(proxy);
        let (code, text) = desk.run(&["check"]);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains(NEVER_LEARNT), "{text}");
        assert_eq!(desk.logins(), 2, "{end}");
        // Another is none of which nothing is known, and with its success all is forgotten.
        desk.faults.clear();
        desk.give(PIN);
        let proxy = desk.serve();
        proxy.wait_until_ready().await;
        assert_eq!(desk.logins(), 3, "{end}");
        assert!(!desk.state_files().iter().any(|file| file.extension().is_some_and(|is| is == "json")));
    }
}

#[tokio::test]
async fn a_right_pin_whose_acceptance_nobody_waited_for_is_tried_once_more() {
    let desk = Desk::new(PIN);
    desk.faults.set("C_Login hang forever");
    let proxy = desk.serve();
    desk.faults.wait_for("a login", |counts| counts.calls(Function::Login) == 1).await;
    drop(proxy);
    desk.faults.clear();
    let proxy = desk.serve();
    proxy.wait_until_ready().await;
    assert_eq!(desk.logins(), 2);
}

#[tokio::test]
async fn a_token_that_counts_a_wrong_pin_after_a_login_without_an_answer_is_not_given_it_again() {
    let desk = Desk::new(WRONG);
    desk.faults.set("C_Login hang forever");
    let proxy = desk.serve();
    desk.faults.wait_for("a login", |counts| counts.calls(Function::Login) == 1).await;
    drop(proxy);
    desk.faults.set("C_GetTokenInfo token_flag=CKF_USER_PIN_COUNT_LOW");
    let proxy = desk.serve();
    wait_for_refusal(&proxy, NEVER_LEARNT);
    assert_eq!(desk.logins(), 1);
}

/// A helper that does not return is killed within two seconds.
const IMPATIENT: &str = "sessions = 2\nisolation = \"process\"\nintervals = { health_probe_ms = 300 }";

#[tokio::test]
async fn a_pin_that_was_right_is_tried_however_many_logins_get_no_answer() {
    let mut desk = Desk::new(PIN);
    desk.setup.token = IMPATIENT.to_owned();
    let proxy = desk.serve();
    proxy.wait_until_ready().await;
    desk.faults.set("* remove_token");
    let _ = proxy.wait_for_log(|line| line["message"] == "the token is not usable");
    let sessions = desk.faults.calls(Function::OpenSession);
    desk.faults.set("C_Login hang until_removed");
    desk.faults.wait_for("five tries", |counts| counts.calls(Function::OpenSession) >= sessions + 5).await;
    desk.faults.clear();
    proxy.wait_until_ready().await;
}

#[tokio::test]
async fn a_helper_that_is_killed_while_it_logs_in_is_followed_by_one_more_try() {
    for remembers in [true, false] {
        let mut desk = Desk::new(WRONG);
        if !remembers {
            desk = desk.without_state();
        }
        desk.setup.token = IMPATIENT.to_owned();
        desk.faults.set("C_Login delay_ms=9000");
        let proxy = desk.serve();
        wait_for_refusal(&proxy, NEVER_LEARNT);
        let sessions = desk.faults.calls(Function::OpenSession);
        desk.faults
            .wait_for("two more tries", |counts| counts.calls(Function::OpenSession) >= sessions + 2)
            .await;
        // One that was killed a moment before counts as well.
        assert!((1..=2).contains(&desk.logins()), "{}", desk.logins());
    }
}

#[tokio::test]
async fn a_login_that_hangs_in_the_process_is_not_repeated_by_the_next_keeper() {
    for remembers in [true, false] {
        let mut desk = Desk::new(WRONG);
        if !remembers {
            desk = desk.without_state();
        }
        desk.setup.token = "intervals = { health_probe_ms = 100 }".to_owned();
        desk.faults.set("C_Login hang forever");
        let proxy = desk.serve();
        let _ = proxy.wait_for_log(|line| {
            line["message"] == "the health probe does not return: its thread is replaced"
        });
        desk.faults.wait_for("the next try", |counts| counts.calls(Function::OpenSession) >= 3).await;
        assert_eq!(desk.logins(), 1);
    }
}

#[test]
fn commands_beside_a_proxy_that_logs_in_do_not_log_in_too() {
    let desk = Desk::new(WRONG);
    desk.faults.set("C_Login hang until_removed");
    let proxy = desk.serve();
    let desk = &desk;
    while desk.logins() == 0 {
        thread::sleep(std::time::Duration::from_millis(2));
    }
    thread::scope(|scope| {
        for command in [&["check", "--force-login"][..], &["doctor"], &["keys", "list"]] {
            scope.spawn(move || {
                let (code, text) = desk.run(command);
                assert_eq!(code, Some(1), "{command:?} {text}");
                assert!(text.contains("beside another login"), "{command:?} {text}");
            });
        }
    });
    assert_eq!(desk.logins(), 1);
    desk.faults.clear();
    wait_for_refusal(&proxy, "refused the PIN with CKR_PIN_INCORRECT");
    assert_eq!(desk.run(&["check"]).0, Some(1));
    assert_eq!(desk.logins(), 1);
}

#[tokio::test]
async fn one_token_under_two_names_is_given_a_wrong_pin_once() {
    for (remembers, is_linked) in [(true, false), (false, false), (true, true)] {
        let mut desk = Desk::new(WRONG);
        if !remembers {
            desk = desk.without_state();
        }
        let mut module = Faults::module();
        if is_linked {
            module = desk.folder.path().join("link.so");
            symlink(Faults::module(), &module).unwrap();
        }
        let serial = desk.token.objects().file_name().unwrap().to_str().unwrap().replace('-', "");
        desk.setup.more += &format!(
            "[[tokens]]\nname = \"again\"\nmodule = {:?}\nserial = {:?}\n{}\n",
            module.display().to_string(),
            &serial[serial.len() - 16..],
            desk.setup.pin,
        );
        desk.faults.set("C_Login delay_ms=300");
        let proxy = desk.serve();
        for token in ["softhsm", "again"] {
            let _ = proxy.wait_for_log(|line| {
                line["message"] == "the token is not usable"
                    && line["token"] == token
                    && line["reason"].as_str().is_some_and(|text| text.contains("refused the PIN"))
            });
        }
        assert_eq!(desk.logins(), 1);
    }
}

#[test]
fn another_path_to_the_module_does_not_give_a_wrong_pin_another_try() {
    let mut desk = Desk::new(WRONG);
    desk.run(&["check"]);
    let link = desk.folder.path().join("link.so");
    symlink(Faults::module(), &link).unwrap();
    desk.setup.module = Some(link);
    let (_, text) = desk.run(&["check"]);
    assert!(text.contains("refused the PIN with CKR_PIN_INCORRECT"), "{text}");
    assert_eq!(desk.logins(), 1);
}

#[tokio::test]
async fn a_login_that_fails_for_another_reason_leaves_nothing_behind() {
    let desk = Desk::new(WRONG);
    desk.run(&["check"]);
    let refused = fs::read_to_string(desk.record()).unwrap();
    desk.give(PIN);
    let failing = "C_Login fail=CKR_DEVICE_ERROR";
    desk.faults.set(failing);
    let mut proxy = desk.serve();
    let rule = failing.parse().unwrap();
    desk.faults.wait_for("three failures", |counts| counts.fired(&rule) >= 3).await;
    // Killed, it would leave behind that it is about to log in again.
    proxy.signal("TERM");
    assert!(proxy.wait_for_exit().success());
    assert_eq!(fs::read_to_string(desk.record()).unwrap(), refused);
    desk.faults.clear();
    assert!(desk.run(&["check"]).1.contains("encrypts and decrypts"));
}
