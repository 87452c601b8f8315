//! The report in four forms.

pub mod head;
pub mod html;
pub mod json;
pub mod junit;
pub mod terminal;
