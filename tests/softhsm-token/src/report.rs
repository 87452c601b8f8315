//! What the commands say.

use softhsm_token::{Initialized, ObjectInfo};

pub(crate) fn initialized(label: &str, outcome: Initialized) -> String {
    let what = match outcome {
        Initialized::Created => "token made",
        Initialized::PinSet => "token exists, user PIN set",
        Initialized::AlreadyThere => "token exists, left as it is",
    };
    format!("{label}: {what}")
}

/// Of one key by its label, of many by their number.
pub(crate) fn generated(label: Option<&str>, made: usize) -> String {
    label.map_or_else(|| format!("{made} keys made"), |label| self::made(label, made > 0))
}

pub(crate) fn made(label: &str, made: bool) -> String {
    format!("{label}: {}", if made { "key made" } else { "key exists, left as it is" })
}

/// A table with a column for each attribute, as wide as its widest cell.
pub(crate) fn table(objects: &[ObjectInfo]) -> String {
    let header =
        ["LABEL", "ID", "CLASS", "TYPE", "BITS", "CHECK", "USAGES", "PRIVATE", "SENSITIVE", "EXTRACTABLE"];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(objects.iter().map(cells));
    let mut widths = [0; 10];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &[String; 10]| {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn cells(object: &ObjectInfo) -> [String; 10] {
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let yes_no = |fact: Option<bool>| fact.map_or("-", |fact| if fact { "yes" } else { "no" }).to_owned();
    [
        object.label.clone(),
        object.id.clone(),
        text(&object.class),
        text(&object.key_type),
        object.bits.map_or_else(|| "-".to_owned(), |bits| bits.to_string()),
        text(&object.check_value),
        object.usages.to_string(),
        yes_no(object.private),
        yes_no(object.sensitive),
        yes_no(object.extractable),
    ]
}
