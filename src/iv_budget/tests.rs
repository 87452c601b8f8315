//! Counts survive, and are never too low.

use std::path::Path;

use futures_util::FutureExt;

use super::*;

fn settings(dir: &Path) -> IvBudgetSettings {
    IvBudgetSettings { dir: Some(dir.to_owned()), share: 1000 }
}

fn open(dir: &Path) -> IvBudget {
    IvBudget::open(&settings(dir), &Arc::new(Metrics::new())).unwrap()
}

fn store(budget: &IvBudget) -> StoreIvCounts {
    budget.of_store(&Arc::from("payments"))
}

async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let until = clock::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(clock::now() < until, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn in_a_minute() -> Deadline {
    Deadline::after(clock::now(), Duration::from_secs(60))
}

/// Draws one as an encryption does.
async fn draw_first(counts: &StoreIvCounts) {
    let count = counts.of("ledger", 1);
    counts.prepare(&count, in_a_minute()).await;
    count.draw(1);
}

/// What is on disk.
fn on_disk(dir: &Path) -> HashMap<(Box<str>, u32), u64> {
    let ledger = Ledger::open(dir).unwrap();
    ledger.read().unwrap().into_iter().map(|(id, drawn)| ((id.key, id.version), drawn)).collect()
}

#[tokio::test]
async fn an_orderly_end_leaves_exact_counts_and_they_go_on() {
    let dir = tempfile::tempdir().unwrap();
    for (draws, total) in [(3, 3), (4, 7)] {
        let budget = open(dir.path());
        let counts = store(&budget);
        let count = counts.of("ledger", 1);
        for _ in 0..draws {
            counts.prepare(&count, in_a_minute()).await;
            count.draw(1);
        }
        counts.of("ledger", 2).draw(9 * u64::from(total == 7));
        budget.close(true);
        drop((counts, budget));
        assert_eq!(on_disk(dir.path())[&("ledger".into(), 1)], total);
    }
    assert_eq!(on_disk(dir.path())[&("ledger".into(), 2)], 9);
}

/// A disk that is slow takes no request the time that the token needs.
#[tokio::test]
async fn the_first_block_is_waited_for_no_longer_than_the_deadline_allows() {
    assert_eq!(first_block_patience(Duration::from_millis(10)), Duration::from_micros(2500));
    assert_eq!(first_block_patience(Duration::from_secs(60)), FIRST_BLOCK_PATIENCE);
    let dir = tempfile::tempdir().unwrap();
    let budget = open(dir.path());
    // There is no writer any more.
    budget.close(false);
    let counts = store(&budget);
    let count = counts.of("ledger", 1);
    let passed = Deadline::after(clock::now(), Duration::ZERO);
    assert!(counts.prepare(&count, passed).now_or_never().is_some());
}

#[tokio::test]
async fn what_may_still_be_drawn_after_the_end_stays_reserved() {
    let dir = tempfile::tempdir().unwrap();
    let budget = open(dir.path());
    draw_first(&store(&budget)).await;
    budget.close(false);
    assert!(on_disk(dir.path())[&("ledger".into(), 1)] >= BLOCK);
}

/// The process ends without notice at any moment after the first draw has returned.
#[tokio::test]
async fn what_is_on_disk_is_ahead_of_what_was_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    let read = || ledger.read().unwrap().into_iter().map(|(_, drawn)| drawn).max().unwrap_or(0);
    let (messages, waiting) = flume::unbounded();
    let shared = Arc::new(Shared {
        share: 1000.into(),
        encrypts: Mutex::new(Arc::new(|_, _, _| true)),
        counts: Mutex::default(),
        messages,
        metrics: Arc::new(Metrics::new()),
    });
    let mut writer = Writer {
        shared: Arc::clone(&shared),
        // The lock is this process's own: a second handle would find it taken.
        ledger: Some(Ledger::unlocked(dir.path())),
        late: Vec::new(),
        shown: HashSet::new(),
    };
    let counts = StoreIvCounts { store: Arc::from("payments"), shared, current: RwLock::default() };
    let count = counts.of("ledger", 1);
    let mut reservations = 0;
    for drawn in 1..=3 * BLOCK {
        count.draw(1);
        if let Ok(Message::Reserve(count)) = waiting.try_recv() {
            writer.reserve(count);
            reservations += 1;
            assert!(read() >= drawn, "{drawn}");
        }
        assert!(count.reserved.load(Ordering::Relaxed) >= drawn, "{drawn}");
    }
    assert_eq!(read(), count.reserved.load(Ordering::Relaxed));
    assert!((3..=8).contains(&reservations), "{reservations} writes for three blocks");
}

#[tokio::test]
async fn a_count_goes_on_where_the_disk_left_it_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let budget = open(dir.path());
    let counts = store(&budget);
    draw_first(&counts).await;
    // A copy of the folder is what a crash would leave.
    let crashed = tempfile::tempdir().unwrap();
    let folder = crashed.path().join("iv-budget");
    std::fs::create_dir(&folder).unwrap();
    for entry in std::fs::read_dir(dir.path().join("iv-budget")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    assert_eq!(on_disk(crashed.path())[&("ledger".into(), 1)], BLOCK);
    let budget = open(crashed.path());
    let counts = store(&budget);
    draw_first(&counts).await;
    budget.close(true);
    drop((counts, budget));
    assert_eq!(on_disk(crashed.path())[&("ledger".into(), 1)], 1 + BLOCK);
}

#[test]
fn two_processes_do_not_count_in_one_folder() {
    let dir = tempfile::tempdir().unwrap();
    let _first = open(dir.path());
    let second = IvBudget::open(&settings(dir.path()), &Arc::new(Metrics::new()));
    assert!(matches!(second, Err(IvBudgetFault::InUse(_))));
}

#[test]
fn a_damaged_count_is_not_taken_for_zero() {
    for content in
        ["", "{}", "{\"format\":2,\"store\":\"s\",\"externalKeyId\":\"k\",\"keyVersion\":1,\"drawn\":1}"]
    {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let id = VersionId { store: Arc::from("s"), key: "k".into(), version: 1 };
        ledger.write(&id, 5).unwrap();
        assert_eq!(ledger.read().unwrap(), [(id, 5)]);
        drop(ledger);
        let folder = std::fs::read_dir(dir.path().join("iv-budget")).unwrap();
        let file = folder.map(|entry| entry.unwrap().path()).find(|path| path.extension().is_some()).unwrap();
        std::fs::write(&file, content).unwrap();
        let opened = IvBudget::open(&settings(dir.path()), &Arc::new(Metrics::new()));
        assert!(matches!(opened, Err(IvBudgetFault::Damaged(path)) if path == file), "{content}");
    }
}

#[tokio::test]
async fn a_disk_that_fails_is_tried_again_and_refuses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("iv-budget");
    let metrics = Arc::new(Metrics::new());
    let budget = IvBudget::open(&settings(dir.path()), &metrics).unwrap();
    let counts = store(&budget);
    std::fs::rename(&folder, dir.path().join("away")).unwrap();
    draw_first(&counts).await;
    eventually("a write has failed", || metrics.iv_budget_write_failures.get() > 0).await;
    std::fs::rename(dir.path().join("away"), &folder).unwrap();
    let count = counts.of("ledger", 1);
    eventually("it was tried again", || count.reserved.load(Ordering::Relaxed) > 0).await;
    budget.close(true);
    drop((counts, budget));
    assert_eq!(on_disk(dir.path())[&("ledger".into(), 1)], 1);
}

#[tokio::test]
async fn without_a_folder_counts_are_kept_in_memory() {
    let settings = IvBudgetSettings { dir: None, share: 4 };
    let metrics = Arc::new(Metrics::new());
    let budget = IvBudget::open(&settings, &metrics).unwrap();
    let counts = store(&budget);
    for _ in 0..3 {
        draw_first(&counts).await;
    }
    let used = metrics.iv_budget_used.with_label_values(&["payments"]);
    eventually("three quarters are used", || (used.get() - 0.75).abs() < 0.01).await;
    assert_eq!(metrics.iv_budget_over_half.with_label_values(&["payments"]).get(), 1);
    // The next version begins at zero, and the one before is no longer what encrypts.
    counts.of("ledger", 2).draw(1);
    eventually("a quarter is used", || (used.get() - 0.25).abs() < 0.01).await;
    budget.close(true);
}

/// A key, or a store, that was removed or switched off needs no rotation.
#[tokio::test]
async fn what_encrypts_no_more_is_shown_no_more() {
    const SERIES: &str = "xks_iv_budget_used_ratio{store=\"payments\"}";
    let metrics = Arc::new(Metrics::new());
    let budget = IvBudget::open(&IvBudgetSettings { dir: None, share: 4 }, &metrics).unwrap();
    let counts = store(&budget);
    counts.of("old", 1).draw(4);
    counts.of("ledger", 1).draw(1);
    let used = |ratio: f64| {
        let metrics = Arc::clone(&metrics);
        move || metrics.render().contains(&format!("\n{SERIES} {ratio}\n"))
    };
    let over_half = || metrics.iv_budget_over_half.with_label_values(&["payments"]).get();
    eventually("all are used", used(1.0)).await;
    assert_eq!(over_half(), 1);
    budget.serve(|_, key, _| key == "ledger");
    eventually("the other key counts", used(0.25)).await;
    assert_eq!(over_half(), 0);
    // Somebody is still busy with a request that began before.
    budget.serve(|_, _, _| false);
    counts.of("ledger", 1).draw(1);
    eventually("nothing is shown", || !metrics.render().contains(SERIES)).await;
    budget.serve(|_, _, _| true);
    eventually("it is back", used(1.0)).await;
    budget.close(true);
}

/// Nobody answers: the thread hangs in the disk.
#[test]
fn the_end_does_not_wait_for_a_disk_that_hangs() {
    let (messages, waiting) = flume::unbounded();
    let metrics = Arc::new(Metrics::new());
    let budget = IvBudget {
        shared: Arc::new(Shared {
            share: 1000.into(),
            encrypts: Mutex::new(Arc::new(|_, _, _| true)),
            counts: Mutex::default(),
            messages,
            metrics,
        }),
    };
    let began_at = clock::now();
    budget.close(true);
    assert!(began_at.elapsed() >= CLOSE_PATIENCE, "it was given time");
    assert!(matches!(waiting.try_recv(), Ok(Message::Close { .. })));
}
