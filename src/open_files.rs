//! How many files this process may have open, and how many connections fit in: strangers must not take the last one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that connections of KMS's listener leave to everything else: what the HSM's client opens, the small listeners and
/// who polls them, configuration, state, audit log and log.
pub const RESERVE: usize = 256;

/// Most that is asked for, the kernel's own default for what one process may have. Libraries that close every file that
/// could be open would be at it for minutes with the billion that some container engines allow.
const MOST: u64 = 1 << 20;

/// What to do where fewer connections fit than the configuration wants.
pub const ADVICE: &str = "raise RLIMIT_NOFILE (systemd: LimitNOFILE=, containers: --ulimit nofile=) to max_connections and 256 more";

/// Raises the soft limit on open files to the hard one, and says how many connections fit in.
#[must_use]
pub fn raise_limit() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(MOST).min(MOST);
    if current.is_some_and(|current| current < wanted) {
        // Where the system refuses, what there is counts.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    }
    let files = getrlimit(Resource::Nofile).current.unwrap_or(MOST);
    room_for_connections(usize::try_from(files).unwrap_or(usize::MAX))
}

/// All but [`RESERVE`]; of few files half.
const fn room_for_connections(files: usize) -> usize {
    let (rest, half) = (files.saturating_sub(RESERVE), files / 2);
    if rest > half { rest } else { half }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_to_everything_else() {
        let cases = [(20_000, 19_744), (1024, 768), (512, 256), (256, 128), (64, 32)];
        assert_eq!(cases.map(|(files, _)| (files, room_for_connections(files))), cases);
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let room = raise_limit();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert!(current.is_none_or(|current| maximum.is_some_and(|maximum| current >= maximum.min(MOST))));
        assert!(room > 0);
        assert!(ADVICE.ends_with(&format!("max_connections and {RESERVE} more")));
    }
}
