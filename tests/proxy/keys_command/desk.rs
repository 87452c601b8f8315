//! Where an operator sits: a configuration, a token, and the commands.

use std::process::Command;
use std::sync::Arc;

use xks_harness::binary::program;
use xks_harness::{Setup, SoftHsm};

/// Exit code, standard output and standard error.
pub(crate) type Ended = (Option<i32>, String, String);

pub(crate) struct Desk {
    pub(crate) setup: Setup,
    pub(crate) token: Arc<SoftHsm>,
}

impl Desk {
    pub(crate) fn new(setup: Setup, token: SoftHsm) -> Self {
        Self { setup, token: Arc::new(token) }
    }

    /// `xks-proxy keys …` with this configuration.
    pub(crate) fn keys(&self, arguments: &[&str]) -> Ended {
        self.run(&[&["keys"], arguments].concat())
    }

    /// `xks-proxy check` with this configuration.
    pub(crate) fn check(&self) -> Ended {
        self.run(&["check"])
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        let folder = tempfile::tempdir().unwrap();
        let config = self.setup.write(folder.path(), &self.token);
        let mut command = Command::new(program("xks-proxy"));
        let output = command.args(arguments).arg("--config").arg(config).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }
}
