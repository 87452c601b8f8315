//! Prints a counters file: every function that was called, and every rule.

use pkcs11_fault::{Counts, Function};
use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(path), None) = (arguments.next(), arguments.next()) else {
        let _ = writeln!(io::stderr(), "usage: pkcs11-fault-counts COUNTS_FILE");
        return ExitCode::from(2);
    };
    match Counts::read(&path).and_then(|counts| print(&counts, &mut io::stdout().lock())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}

fn print(counts: &Counts, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{:<24} {:>12} {:>12} {:>12}", "function", "calls", "most inside", "inside now")?;
    for function in Function::ALL.into_iter().filter(|function| counts.calls(*function) > 0) {
        let (calls, most, now) =
            (counts.calls(function), counts.most_inside(function), counts.inside(function));
        writeln!(out, "{function:<24} {calls:>12} {most:>12} {now:>12}")?;
    }
    writeln!(out, "\n{:>12} {:>12}  rule", "fired", "matched")?;
    for rule in counts.rules() {
        writeln!(out, "{:>12} {:>12}  {}", rule.fired, rule.matched, rule.text)?;
    }
    writeln!(out, "\nunusable control files: {}", counts.control_errors())
}
