//! Session and object handles as the application knows them, and what else there is to know of its sessions.
//!
//! A handle is the real module's own number as long as no fault has touched it. When handles are made invalid, their
//! numbers are spent, and what the real module hands out under the same numbers later gets new ones.

use super::gcm::Gcm;
use super::lock;
use super::real::Real;
use crate::function::Operation;
use cryptoki_sys::{CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE, CK_SLOT_ID};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// Where handles begin that are not the real module's own.
const FIRST_NEW_HANDLE: u64 = 0x7000_0000;

/// A session of the real module. It is closed when nobody uses it any more, unless that has been done.
pub(super) struct Session {
    real: &'static Real,
    pub(super) handle: CK_SESSION_HANDLE,
    pub(super) slot: CK_SLOT_ID,
    closed: AtomicBool,
    operations: Mutex<HashMap<Operation, Running>>,
    /// The keys that stand in for others, by the key that each stands in for.
    pub(super) substitutes: Mutex<HashMap<CK_OBJECT_HANDLE, CK_OBJECT_HANDLE>>,
}

/// A keyed operation that was begun.
pub(super) struct Running {
    /// The real handle of the key that the application named.
    pub(super) key: CK_OBJECT_HANDLE,
    /// What there is to know if it is AES-GCM.
    pub(super) gcm: Option<Gcm>,
}

impl Session {
    pub(super) fn new(real: &'static Real, handle: CK_SESSION_HANDLE, slot: CK_SLOT_ID) -> Self {
        Session {
            real,
            handle,
            slot,
            closed: AtomicBool::new(false),
            operations: Mutex::default(),
            substitutes: Mutex::default(),
        }
    }

    pub(super) fn begin(&self, operation: Operation, running: Running) {
        lock(&self.operations).insert(operation, running);
    }

    /// Looks at an operation, if it was begun.
    pub(super) fn running<T>(&self, operation: Operation, look: impl FnOnce(&Running) -> T) -> Option<T> {
        lock(&self.operations).get(&operation).map(look)
    }

    pub(super) fn end(&self, operation: Operation) {
        lock(&self.operations).remove(&operation);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.closed.load(Ordering::SeqCst) {
            self.real.close(self.handle);
        }
    }
}

/// What a handle of the application's leads to.
pub(super) enum Found<T> {
    /// To this.
    Live(T),
    /// To nothing: a fault has made it invalid.
    Dead,
    /// We never saw it: the real module knows best.
    Unknown,
}

#[derive(Default)]
pub(super) struct Handles(Mutex<Tables>);

#[derive(Default)]
struct Tables {
    /// How often the module was initialised or finalised.
    epoch: u64,
    sessions: HashMap<CK_SESSION_HANDLE, Arc<Session>>,
    /// Sessions that a fault has dropped. A call may still be at work in the real one.
    dead_sessions: HashMap<CK_SESSION_HANDLE, (CK_SLOT_ID, Weak<Session>)>,
    opening: HashMap<CK_SLOT_ID, u64>,
    /// Real handles by the application's.
    objects: HashMap<(CK_SLOT_ID, CK_OBJECT_HANDLE), CK_OBJECT_HANDLE>,
    /// The application's handles by the real ones.
    numbers: HashMap<(CK_SLOT_ID, CK_OBJECT_HANDLE), CK_OBJECT_HANDLE>,
    dead_objects: HashSet<(CK_SLOT_ID, CK_OBJECT_HANDLE)>,
    logged_in: HashSet<CK_SLOT_ID>,
    forgotten_logins: HashSet<CK_SLOT_ID>,
    reinit_answer: Option<CK_RV>,
    new_handles: u64,
}

impl Tables {
    /// A number that was never handed out: the real one if it can be.
    fn free_number(&mut self, real: u64, is_taken: impl Fn(&Self, u64) -> bool) -> u64 {
        let mut number = real;
        while is_taken(self, number) {
            number = FIRST_NEW_HANDLE + self.new_handles;
            self.new_handles += 1;
        }
        number
    }

    fn hand_out(&mut self, slot: CK_SLOT_ID, real: CK_OBJECT_HANDLE) -> CK_OBJECT_HANDLE {
        if let Some(number) = self.numbers.get(&(slot, real)) {
            return *number;
        }
        let is_taken = |tables: &Self, number| {
            tables.objects.contains_key(&(slot, number)) || tables.dead_objects.contains(&(slot, number))
        };
        let number = self.free_number(real, is_taken);
        self.objects.insert((slot, number), real);
        self.numbers.insert((slot, real), number);
        number
    }

    fn take_sessions(&mut self, slot: CK_SLOT_ID) -> Vec<(CK_SESSION_HANDLE, Arc<Session>)> {
        self.logged_in.remove(&slot);
        self.sessions.extract_if(|_, session| session.slot == slot).collect()
    }
}

/// Sessions.
impl Handles {
    pub(super) fn session(&self, number: CK_SESSION_HANDLE) -> Found<Arc<Session>> {
        let tables = lock(&self.0);
        match tables.sessions.get(&number) {
            Some(session) => Found::Live(Arc::clone(session)),
            None if tables.dead_sessions.contains_key(&number) => Found::Dead,
            None => Found::Unknown,
        }
    }

    /// The slot that a session is or was open with.
    pub(super) fn slot_of(&self, number: CK_SESSION_HANDLE) -> Option<CK_SLOT_ID> {
        let tables = lock(&self.0);
        let live = tables.sessions.get(&number).map(|session| session.slot);
        live.or_else(|| tables.dead_sessions.get(&number).map(|(slot, _)| *slot))
    }

    /// The slots with open sessions.
    pub(super) fn open_slots(&self) -> HashSet<CK_SLOT_ID> {
        lock(&self.0).sessions.values().map(|session| session.slot).collect()
    }

    /// Announces a session that is about to be opened, and returns how many there are or may be without it.
    pub(super) fn begin_opening(&self, slot: CK_SLOT_ID) -> u64 {
        let mut tables = lock(&self.0);
        let open = tables.sessions.values().map(|session| u64::from(session.slot == slot)).sum::<u64>();
        let opening = tables.opening.entry(slot).or_default();
        *opening += 1;
        open + *opening - 1
    }

    /// Ends what [`Handles::begin_opening`] began, with the session if there is one; returns its number.
    pub(super) fn end_opening(
        &self,
        slot: CK_SLOT_ID,
        session: Option<Session>,
    ) -> Option<CK_SESSION_HANDLE> {
        let mut tables = lock(&self.0);
        if let Some(opening) = tables.opening.get_mut(&slot) {
            *opening -= 1;
        }
        let session = session?;
        let is_taken = |tables: &Tables, number| {
            tables.sessions.contains_key(&number) || tables.dead_sessions.contains_key(&number)
        };
        let number = tables.free_number(session.handle, is_taken);
        tables.sessions.insert(number, Arc::new(session));
        Some(number)
    }

    /// Forgets a session that the application has closed.
    pub(super) fn closed(&self, number: CK_SESSION_HANDLE) {
        let mut tables = lock(&self.0);
        let Some(session) = tables.sessions.remove(&number) else { return };
        session.closed.store(true, Ordering::SeqCst);
        if !tables.sessions.values().any(|other| other.slot == session.slot) {
            tables.logged_in.remove(&session.slot);
        }
    }

    /// Forgets the sessions with a slot, which the application has closed.
    pub(super) fn closed_all(&self, slot: CK_SLOT_ID) {
        for (_, session) in lock(&self.0).take_sessions(slot) {
            session.closed.store(true, Ordering::SeqCst);
        }
    }

    /// Makes the sessions with a slot invalid. The real ones are closed when the last call in them has returned.
    pub(super) fn drop_sessions(&self, slot: CK_SLOT_ID) {
        let mut tables = lock(&self.0);
        let dropped = tables.take_sessions(slot);
        let dead = dropped.iter().map(|(number, session)| (*number, (slot, Arc::downgrade(session))));
        tables.dead_sessions.extend(dead);
        // Closing them calls the real module, which no lock may wait for.
        drop(tables);
        drop(dropped);
    }

    /// The keys that stand in for others with a slot: objects of ours, which the application must not find.
    pub(super) fn substitutes(&self, slot: CK_SLOT_ID) -> HashSet<CK_OBJECT_HANDLE> {
        let tables = lock(&self.0);
        let sessions = tables.sessions.values().filter(|session| session.slot == slot);
        sessions
            .flat_map(|session| lock(&session.substitutes).values().copied().collect::<Vec<_>>())
            .collect()
    }
}

/// Objects.
impl Handles {
    /// The application's handle for a real one.
    pub(super) fn hand_out(&self, slot: CK_SLOT_ID, real: CK_OBJECT_HANDLE) -> CK_OBJECT_HANDLE {
        lock(&self.0).hand_out(slot, real)
    }

    pub(super) fn object(&self, slot: CK_SLOT_ID, number: CK_OBJECT_HANDLE) -> Found<CK_OBJECT_HANDLE> {
        let tables = lock(&self.0);
        match tables.objects.get(&(slot, number)) {
            Some(real) => Found::Live(*real),
            None if tables.dead_objects.contains(&(slot, number)) => Found::Dead,
            None => Found::Unknown,
        }
    }

    /// Forgets an object that is destroyed.
    pub(super) fn destroyed(&self, slot: CK_SLOT_ID, number: CK_OBJECT_HANDLE) {
        let mut tables = lock(&self.0);
        if let Some(real) = tables.objects.remove(&(slot, number)) {
            tables.numbers.remove(&(slot, real));
        }
    }

    /// The slots whose objects were handed out.
    pub(super) fn slots_with_objects(&self) -> HashSet<CK_SLOT_ID> {
        lock(&self.0).objects.keys().map(|(slot, _)| *slot).collect()
    }

    /// Makes invalid what was handed out with a slot.
    pub(super) fn invalidate_objects(&self, slot: CK_SLOT_ID) {
        let mut tables = lock(&self.0);
        let dead: Vec<_> = tables.objects.extract_if(|(of, _), _| *of == slot).map(|(key, _)| key).collect();
        tables.dead_objects.extend(dead);
        tables.numbers.retain(|(of, _), _| *of != slot);
    }

    /// Lets each handle of these objects lead to the next object, and the last to the first.
    pub(super) fn rotate_objects(&self, slot: CK_SLOT_ID, objects: &[CK_OBJECT_HANDLE]) {
        let mut tables = lock(&self.0);
        let numbers: Vec<_> = objects.iter().map(|real| tables.hand_out(slot, *real)).collect();
        for (number, real) in numbers.iter().zip(objects.iter().cycle().skip(1)) {
            tables.objects.insert((slot, *number), *real);
            tables.numbers.insert((slot, *real), *number);
        }
    }
}

/// Logins and initialisation.
impl Handles {
    pub(super) fn logged_in(&self, slot: CK_SLOT_ID) {
        let mut tables = lock(&self.0);
        tables.logged_in.insert(slot);
        tables.forgotten_logins.remove(&slot);
    }

    pub(super) fn logged_out(&self, slot: CK_SLOT_ID) {
        lock(&self.0).logged_in.remove(&slot);
    }

    /// The slots that the application is logged in with.
    pub(super) fn slots_logged_in(&self) -> HashSet<CK_SLOT_ID> {
        lock(&self.0).logged_in.clone()
    }

    pub(super) fn forget_login(&self, slot: CK_SLOT_ID) {
        let mut tables = lock(&self.0);
        tables.logged_in.remove(&slot);
        tables.forgotten_logins.insert(slot);
    }

    pub(super) fn login_is_forgotten(&self, slot: CK_SLOT_ID) -> bool {
        lock(&self.0).forgotten_logins.contains(&slot)
    }

    pub(super) fn require_reinit(&self, answer: CK_RV) {
        lock(&self.0).reinit_answer = Some(answer);
    }

    pub(super) fn reinit_answer(&self) -> Option<CK_RV> {
        lock(&self.0).reinit_answer
    }

    pub(super) fn epoch(&self) -> u64 {
        lock(&self.0).epoch
    }

    /// The module was initialised or finalised: no session is left, no handle means anything.
    pub(super) fn reset(&self) {
        let mut tables = lock(&self.0);
        let dropped: Vec<_> =
            tables.dead_sessions.values().filter_map(|(_, session)| session.upgrade()).collect();
        // Their numbers may soon be those of other sessions.
        for session in tables.sessions.values().chain(&dropped) {
            session.closed.store(true, Ordering::SeqCst);
        }
        *tables = Tables { epoch: tables.epoch + 1, ..Tables::default() };
    }
}
