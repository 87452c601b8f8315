//! The table of `docs/order-of-checks.md`, row by row and pair by pair.

mod checks;
mod head_first;
mod methods;
mod pairs;
mod paths;
