//! Signs of life for the supervisor's watchdog, as long as the runtime gets work done.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

/// Calls `alive` twice in each `timeout`, as long as a task that is begun each time gets its turn and `answers` returns to it.
/// Ends never.
///
/// A runtime whose threads all wait for something, or a lock that is never let go of, keeps it from being called: a
/// timer of its own in another thread would tell that a process lives that answers nobody.
pub(super) async fn watch<F: Future<Output = ()>>(
    timeout: Duration,
    answers: impl Fn() + Send + Sync + 'static,
    alive: impl Fn() -> F,
) {
    let answers = Arc::new(answers);
    let mut ticks = interval(timeout / 2);
    // After a pause of the whole process one sign is enough.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let answers = Arc::clone(&answers);
        if tokio::spawn(async move { answers() }).await.is_ok() {
            alive().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::sync::{Arc, Barrier, Mutex};

    use tokio::runtime::{Builder, Runtime};

    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(20);
    const PATIENCE: Duration = Duration::from_secs(60);
    /// A sign that should not come would have come within this time.
    const SILENCE: Duration = Duration::from_millis(500);

    fn watched(answers: impl Fn() + Send + Sync + 'static) -> (Runtime, Receiver<()>) {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (sign, signs): (Sender<()>, _) = channel();
        let alive = move || {
            let _ = sign.send(());
            std::future::ready(())
        };
        runtime.spawn(watch(TIMEOUT, answers, alive));
        (runtime, signs)
    }

    /// Several, so that those which were under way before do not count.
    fn assert_lives(signs: &Receiver<()>) {
        for _ in 0..4 {
            signs.recv_timeout(PATIENCE).unwrap();
        }
    }

    fn assert_is_silent(signs: &Receiver<()>) {
        while signs.try_recv().is_ok() {}
        // The one that was under way.
        let _ = signs.recv_timeout(SILENCE);
        assert!(signs.recv_timeout(SILENCE).is_err(), "a sign of life from one that answers nobody");
    }

    #[test]
    fn a_runtime_whose_threads_are_all_stuck_gives_no_sign() {
        let (runtime, signs) = watched(|| ());
        assert_lives(&signs);
        let (inside, outside) = (Arc::new(Barrier::new(3)), Arc::new(Barrier::new(3)));
        for _ in 0..2 {
            let (inside, outside) = (Arc::clone(&inside), Arc::clone(&outside));
            runtime.spawn(async move {
                inside.wait();
                outside.wait();
            });
        }
        inside.wait();
        assert_is_silent(&signs);
        outside.wait();
        assert_lives(&signs);
    }

    #[test]
    fn a_lock_that_is_not_let_go_of_gives_no_sign() {
        let lock = Arc::new(Mutex::new(()));
        let asked = Arc::clone(&lock);
        let (_runtime, signs) = watched(move || drop(asked.lock().unwrap()));
        assert_lives(&signs);
        let held = lock.lock().unwrap();
        assert_is_silent(&signs);
        drop(held);
        assert_lives(&signs);
    }

    #[test]
    fn a_panic_gives_no_sign() {
        let (_runtime, signs) = watched(|| panic!("expected by the test"));
        assert!(signs.recv_timeout(SILENCE).is_err());
    }
}
