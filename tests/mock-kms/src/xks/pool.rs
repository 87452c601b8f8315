//! Connections kept for the next request.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::connection::Connection;

/// Idle connections by host. HTTP/1.1 connections are lent to one request at a time, HTTP/2 connections shared.
pub(super) struct Pool {
    keep_alive: Duration,
    idle: Mutex<HashMap<String, Vec<Idle>>>,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

impl Pool {
    pub(super) fn new(keep_alive: Duration) -> Self {
        Self { keep_alive, idle: Mutex::default() }
    }

    /// The connection that was used last, if one is open.
    pub(super) fn take(&self, host: &str) -> Option<Connection> {
        let mut idle = self.idle();
        let connections = idle.get_mut(host)?;
        connections.retain(|idle| idle.since.elapsed() < self.keep_alive && idle.connection.is_open());
        let last = connections.last_mut()?;
        if let Some(shared) = last.connection.share() {
            last.since = Instant::now();
            return Some(shared);
        }
        connections.pop().map(|idle| idle.connection)
    }

    /// Keeps a connection on which nothing is under way any more, or that can be shared.
    pub(super) fn put(&self, host: &str, connection: Connection) {
        if self.keep_alive.is_zero() {
            return;
        }
        let mut idle = self.idle();
        let connections = idle.entry(host.to_owned()).or_default();
        connections.push(Idle { connection, since: Instant::now() });
    }

    /// Forgets every connection to `host`: one of them has just let a request wait in vain.
    pub(super) fn forget(&self, host: &str) {
        self.idle().remove(host);
    }

    fn idle(&self) -> MutexGuard<'_, HashMap<String, Vec<Idle>>> {
        // Nothing that holds the lock panics half-way through a change.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
