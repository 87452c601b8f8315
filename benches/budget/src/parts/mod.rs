//! The parts of the budget.

mod connections;
mod cpu;
mod handshake;
mod latency;
mod memory;
mod overload;
mod scale;
mod slow_token;
mod soak;
mod start;

use clap::ValueEnum;

use crate::rig::{Fault, Rig};
use crate::table::Row;

/// A part of the budget, by the name that `--only` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// CPU of a bare SoftHSM2 encrypt, which the others are compared with
    Bare,
    /// CPU of an encrypt
    Encrypt,
    /// CPU of an encrypt with integrity value
    EncryptCdiv,
    /// CPU of a decrypt
    Decrypt,
    /// CPU of a GetKeyMetadata
    Metadata,
    /// CPU of a GetHealthStatus
    Health,
    /// Latency at the rate of KMS's quota
    Latency,
    /// Many keys against one
    Keys,
    /// Many stores against one
    Stores,
    /// Throughput on a token that takes its time
    SlowToken,
    /// Memory, idle and for each connection
    Memory,
    /// As many connections as there may be
    Connections,
    /// From start to ready
    Start,
    /// CPU of a TLS handshake
    Handshake,
    /// More requests than quota and token allow
    Overload,
    /// More requests than the processor does
    OverloadCpu,
    /// Growth over time
    Soak,
}

impl Part {
    /// In the order of the table.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        Self::value_variants().iter().copied()
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Encrypt => "encrypt",
            Self::EncryptCdiv => "encrypt-cdiv",
            Self::Decrypt => "decrypt",
            Self::Metadata => "metadata",
            Self::Health => "health",
            Self::Latency => "latency",
            Self::Keys => "keys",
            Self::Stores => "stores",
            Self::SlowToken => "slow-token",
            Self::Memory => "memory",
            Self::Connections => "connections",
            Self::Start => "start",
            Self::Handshake => "handshake",
            Self::Overload => "overload",
            Self::OverloadCpu => "overload-cpu",
            Self::Soak => "soak",
        }
    }

    /// Whether it is measured in turns with a bare encrypt.
    fn is_cpu(self) -> bool {
        matches!(
            self,
            Self::Bare | Self::Encrypt | Self::EncryptCdiv | Self::Decrypt | Self::Metadata | Self::Health
        )
    }
}

/// Parts that are measured together, since they share a base: those of CPU; every other by itself.
pub(crate) fn groups(parts: &[Part]) -> Vec<Vec<Part>> {
    let (cpu, others): (Vec<_>, Vec<_>) = parts.iter().partition(|part| part.is_cpu());
    let cpu = (!cpu.is_empty()).then_some(cpu);
    cpu.into_iter().chain(others.into_iter().map(|part| vec![part])).collect()
}

/// Measures parts of one group. Whatever goes wrong, a panic of the harness included, is a row of the table.
pub(crate) fn measure(rig: &Rig, group: &[Part]) -> Vec<Row> {
    measure_with(rig, group, rows)
}

fn measure_with(
    rig: &Rig,
    group: &[Part],
    rows: impl FnOnce(&Rig, &[Part]) -> Result<Vec<Row>, Fault> + Send,
) -> Vec<Row> {
    let measured = std::thread::scope(|scope| scope.spawn(|| rows(rig, group)).join());
    let reason = match measured {
        Ok(Ok(rows)) => return rows,
        Ok(Err(fault)) => fault.to_string(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            text.unwrap_or("ended unexpectedly").to_owned()
        }
    };
    group.iter().map(|part| Row::failed(part.name(), &reason)).collect()
}

fn rows(rig: &Rig, group: &[Part]) -> Result<Vec<Row>, Fault> {
    match group {
        [Part::Latency] => latency::measure(rig),
        [Part::Keys] => scale::keys(rig),
        [Part::Stores] => scale::stores(rig),
        [Part::SlowToken] => slow_token::measure(rig),
        [Part::Memory] => memory::measure(rig),
        [Part::Connections] => connections::measure(rig),
        [Part::Start] => start::measure(rig),
        [Part::Handshake] => handshake::measure(rig),
        [Part::Overload] => overload::measure(rig),
        [Part::OverloadCpu] => overload::measure_cpu(rig),
        [Part::Soak] => soak::measure(rig),
        cpu => cpu::measure(rig, cpu),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line() {
        for part in Part::all() {
            assert_eq!(Part::from_str(part.name(), false), Ok(part));
        }
    }

    #[test]
    fn parts_of_cpu_share_their_base_and_no_part_is_lost() {
        let all: Vec<_> = Part::all().collect();
        let groups = groups(&all);
        assert_eq!(groups[0].len(), 6);
        assert!(groups[1..].iter().all(|group| group.len() == 1));
        assert_eq!(groups.concat(), all);
        assert!(super::groups(&[Part::Soak]).concat() == [Part::Soak]);
    }

    #[test]
    fn a_part_that_panics_is_a_row_and_ends_nothing_else() {
        let rig = Rig::new([None, None], 0.1, 1, std::time::Duration::ZERO, 1).unwrap();
        let rows = measure_with(&rig, &[Part::Keys], |_, _| panic!("no token"));
        assert_eq!((rows.len(), rows[0].note.as_str()), (1, "no token"));
        let rows = measure_with(&rig, &[Part::Bare, Part::Encrypt], |_, _| Err("no module".into()));
        assert_eq!((rows.len(), rows[1].part, rows[1].note.as_str()), (2, "encrypt", "no module"));
    }
}
