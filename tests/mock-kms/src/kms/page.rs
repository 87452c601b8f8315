//! Pages of long lists.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{Exception, KmsError};

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// What to ask the next page with, if there is one.
    pub next_marker: Option<String>,
}

/// The page of `items` after `marker` with at most `limit` of them. `items` are in the order of their names, which are
/// unique; a marker is good even after the item that it names has gone.
///
/// # Errors
/// `InvalidMarkerException` for a marker that was not handed out.
pub fn page<'a, T>(
    items: impl Iterator<Item = (&'a str, T)>,
    marker: Option<&str>,
    limit: usize,
) -> Result<Page<T>, KmsError> {
    let after = marker.map(decode).transpose()?;
    let mut rest = items.filter(|(name, _)| after.as_deref().is_none_or(|after| *name > after)).peekable();
    let mut page = Page { items: Vec::new(), next_marker: None };
    while let Some((name, item)) = rest.next() {
        page.items.push(item);
        if page.items.len() == limit && rest.peek().is_some() {
            page.next_marker = Some(URL_SAFE_NO_PAD.encode(name));
            break;
        }
    }
    Ok(page)
}

fn decode(marker: &str) -> Result<String, KmsError> {
    let bytes = URL_SAFE_NO_PAD.decode(marker).ok();
    let name = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    name.ok_or_else(|| KmsError::new(Exception::InvalidMarkerException, "Could not deserialize marker"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("{n:03}")).collect()
    }

    #[test]
    fn pages_cover_the_list_once() {
        for (count, limit, pages) in [(0, 5, 1), (1, 1, 1), (5, 5, 1), (6, 5, 2), (10, 3, 4)] {
            let names = names(count);
            let mut seen = Vec::new();
            let mut marker = None;
            for turn in 1.. {
                let list = names.iter().map(|name| (name.as_str(), name.clone()));
                let page = page(list, marker.as_deref(), limit).unwrap();
                assert!(page.items.len() <= limit);
                seen.extend(page.items);
                marker = page.next_marker;
                if marker.is_none() {
                    assert_eq!(turn, pages);
                    break;
                }
            }
            assert_eq!(seen, names);
        }
    }

    #[test]
    fn a_marker_that_was_not_handed_out_is_refused() {
        let list = std::iter::empty::<(&str, ())>();
        let error = page(list, Some("not a marker!"), 1).unwrap_err();
        assert_eq!(error.exception, Exception::InvalidMarkerException);
    }
}
