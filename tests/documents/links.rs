//! Links between documents lead somewhere.

use std::path::{Component, Path, PathBuf};

use super::markdown::{anchor, headings, links};
use super::{ROOT, documents, read};

/// Without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(normal.pop()),
            Component::CurDir => {}
            component => normal.push(component),
        }
    }
    normal
}

/// Whether a document has such an anchor: of a heading, or written out.
fn has_anchor(document: &str, wanted: &str) -> bool {
    let text = read(document);
    headings(&text).iter().any(|(_, heading)| anchor(heading) == wanted)
        || text.contains(&format!("id=\"{wanted}\""))
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    let mut broken = Vec::new();
    for document in documents() {
        for (line, target) in links(&read(&document)) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) =
                target.split_once('#').map_or((&*target, None), |(path, anchor)| (path, Some(anchor)));
            let path = if path.is_empty() {
                PathBuf::from(&document)
            } else {
                normal(&Path::new(&document).parent().unwrap().join(path))
            };
            let is_there = Path::new(ROOT).join(&path).exists();
            let is_found =
                anchor.is_none_or(|anchor| is_there && has_anchor(&path.to_string_lossy(), anchor));
            if !is_there || !is_found {
                broken.push(format!("{document}:{line}: {target}"));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Who looks for a document begins at the README.
#[test]
fn the_readme_leads_to_every_document() {
    let from = |document: &str| -> Vec<String> {
        let folder = Path::new(document).parent().unwrap().to_owned();
        let targets = links(&read(document)).into_iter().map(|(_, target)| target);
        let local = targets.filter(|target| !target.contains("://"));
        let to = local.map(|target| normal(&folder.join(target.split('#').next().unwrap())));
        to.map(|path| path.to_string_lossy().into_owned()).collect()
    };
    let mut reached = vec!["README.md".to_owned()];
    let mut next = 0;
    while next < reached.len() {
        for target in from(&reached[next].clone()) {
            let target = if target == "deploy" { "deploy/README.md".to_owned() } else { target };
            if target.ends_with(".md") && !reached.contains(&target) {
                reached.push(target);
            }
        }
        next += 1;
    }
    let lost: Vec<_> = documents().into_iter().filter(|document| !reached.contains(document)).collect();
    assert!(lost.is_empty(), "no way leads there from README.md: {lost:#?}");
}
