//! A thousand tamperings.

use proptest::strategy::ValueTree;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::*;

/// A chain over five files, and another chain to splice from.
struct Archive {
    files: Vec<Vec<u8>>,
    other: Vec<u8>,
    head: Hash,
}

fn archive() -> Archive {
    let desk = Desk::new();
    let mut files = Vec::new();
    for name in ["1", "2", "3"] {
        desk.live(8);
        // A crash belongs to every long life.
        desk.append(br#"{"seq":9,"prev":"0"#);
        desk.live(4);
        files.push(desk.move_away(name));
    }
    // One that a process left behind in the middle of its life.
    let audit = desk.open();
    audit.push(record());
    wait_until(|| desk.path().exists() && types(&desk.path()).len() == 2);
    files.push(desk.move_away("4"));
    audit.reopen();
    wait_until(|| desk.path().exists());
    audit.close();
    files.push(desk.path());
    let verified = desk.verify(&files).unwrap();
    assert_eq!((verified.head.seq, verified.torn.len()), (52, 3));
    let other = Desk::new();
    other.live(46);
    let read = |path: &PathBuf| fs::read(path).unwrap();
    Archive { files: files.iter().map(read).collect(), other: read(&other.path()), head: verified.head.hash }
}

fn lines(file: &[u8]) -> Vec<Vec<u8>> {
    file.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
}

/// Does one thing to the files that a person with access to them could do.
fn tamper(archive: &Archive, way: usize, at: [prop::sample::Index; 3], byte: u8) -> Vec<Vec<u8>> {
    let mut files = archive.files.clone();
    let file = at[0].index(files.len());
    let content = files[file].clone();
    let mut of_file = lines(&content);
    let (line, second) = (at[1].index(of_file.len()), at[2].index(of_file.len()));
    match way {
        // A byte is changed, put in, taken out.
        0 => files[file][at[1].index(content.len())] ^= byte.max(1),
        1 => files[file].insert(at[1].index(content.len() + 1), byte),
        2 => drop(files[file].remove(at[1].index(content.len()))),
        // The tail is cut off, wherever.
        3 => files[file].truncate(at[1].index(content.len())),
        // A line is removed, repeated, swapped with another.
        4 => {
            of_file.remove(line);
            files[file] = of_file.concat();
        }
        5 => {
            of_file.insert(second, of_file[line].clone());
            files[file] = of_file.concat();
        }
        6 => {
            of_file.swap(line, second);
            files[file] = of_file.concat();
        }
        // A record of another chain takes the place of one, or goes between two.
        7 => {
            let other = lines(&archive.other);
            of_file[line] = other[at[2].index(other.len())].clone();
            files[file] = of_file.concat();
        }
        8 => {
            let other = lines(&archive.other);
            of_file.insert(line, other[at[2].index(other.len())].clone());
            files[file] = of_file.concat();
        }
        // A span is cut out.
        9 => {
            let (from, to) = (at[1].index(content.len()), at[2].index(content.len()));
            files[file].drain(from.min(to)..=from.max(to));
        }
        // A file is deleted, or emptied.
        10 => drop(files.remove(file)),
        11 => files[file].clear(),
        // The next record begins at the end of a file, as it would after a crash, though it stands in the next one. At the end
        // of the chain it looks as if the tail had been cut off, which is told.
        _ => {
            let before_last = at[0].index(files.len() - 1);
            let next = lines(&files[before_last + 1]).remove(0);
            let begin = next[..=at[1].index(next.len() - 1)].to_vec();
            files[before_last].extend(begin);
        }
    }
    files
}

#[test]
fn a_thousand_tamperings_are_all_found() {
    const TAMPERINGS: usize = 1_000;
    const WAYS: usize = 13;
    let archive = archive();
    let folder = tempfile::tempdir().unwrap();
    let paths = |count: usize| (0..count).map(|n| folder.path().join(n.to_string())).collect::<Vec<_>>();
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = proptest::test_runner::TestRunner::new_with_rng(config, rng);
    let choice = (any::<[prop::sample::Index; 3]>(), any::<u8>());
    let (mut found, mut way) = ([0; WAYS], 0);
    while found.iter().sum::<usize>() < TAMPERINGS {
        let (at, byte) = choice.new_tree(&mut runner).unwrap().current();
        let files = tamper(&archive, way, at, byte);
        // A line repeated in a place where it makes no difference, or swapped with itself.
        if files == archive.files {
            continue;
        }
        let paths = paths(files.len());
        for (path, content) in paths.iter().zip(&files) {
            fs::write(path, content).unwrap();
        }
        let expected = Expected { after: None, head: Some(archive.head) };
        let verified = verify(&paths, &Hasher::new(None), expected);
        assert!(verified.is_err(), "way {way} with {at:?} {byte}: {verified:?}");
        found[way] += 1;
        way = (way + 1) % WAYS;
    }
    assert!(found.iter().all(|count| *count >= TAMPERINGS / WAYS), "{found:?}");
    // And what was not tampered with is whole.
    let paths = paths(archive.files.len());
    for (path, content) in paths.iter().zip(&archive.files) {
        fs::write(path, content).unwrap();
    }
    let expected = Expected { after: None, head: Some(archive.head) };
    assert_eq!(verify(&paths, &Hasher::new(None), expected).unwrap().behind_expected, Some(0));
}
