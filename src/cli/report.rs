//! What a command that checks has found, printed as it is found.

use super::{EXIT_FAILED, EXIT_OK, print};

#[derive(Default)]
pub(super) struct Report {
    faults: usize,
    notices: usize,
}

impl Report {
    pub(super) fn good(&mut self, what: &str) {
        print(&format!("ok      {what}"));
    }

    pub(super) fn notice(&mut self, what: &str) {
        self.notices += 1;
        print(&format!("notice  {what}"));
    }

    pub(super) fn fault(&mut self, what: &str) {
        self.faults += 1;
        print(&format!("FAULT   {what}"));
    }

    /// Prints the sum; the exit code.
    pub(super) fn end(&self) -> u8 {
        print(&format!("{} faults, {} notices", self.faults, self.notices));
        if self.faults == 0 { EXIT_OK } else { EXIT_FAILED }
    }
}
