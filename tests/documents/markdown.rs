//! As much of Markdown as the documents use.

/// A fenced block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// Line of the fence, from 1.
    pub(crate) line: usize,
    /// What stands behind the opening fence.
    pub(crate) language: String,
    /// The HTML comment right before it, without `<!--` and `-->`.
    pub(crate) mark: Option<String>,
    /// Its lines, less the fence's indentation.
    pub(crate) content: String,
}

/// The fenced blocks of a document.
pub(crate) fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<(Block, usize)> = None;
    let mut mark = None;
    for (index, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        let indentation = line.len() - trimmed.len();
        match (open.take(), trimmed.strip_prefix("```")) {
            (Some((block, _)), Some(_)) => blocks.push(block),
            (Some((mut block, fence_indentation)), None) => {
                // The fence of a list item is indented as its lines are.
                block.content.push_str(&line[indentation.min(fence_indentation)..]);
                block.content.push('\n');
                open = Some((block, fence_indentation));
            }
            (None, Some(language)) => {
                let language = language.trim().to_owned();
                let block = Block { line: index + 1, language, mark: mark.take(), content: String::new() };
                open = Some((block, indentation));
            }
            (None, None) => {
                let comment =
                    trimmed.strip_prefix("<!--").and_then(|rest| rest.trim_end().strip_suffix("-->"));
                mark = comment.map(|comment| comment.trim().to_owned());
            }
        }
    }
    assert!(open.is_none(), "a fence is not closed");
    blocks
}

/// The lines outside of fenced blocks, with their numbers from 1.
pub(crate) fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut is_inside = false;
    let mut prose = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            is_inside = !is_inside;
        } else if !is_inside {
            prose.push((index + 1, line));
        }
    }
    prose
}

/// The headings: level and text.
pub(crate) fn headings(text: &str) -> Vec<(usize, String)> {
    let heading = |(_, line): (usize, &str)| {
        let level = line.bytes().take_while(|byte| *byte == b'#').count();
        let text = line.get(level..)?.strip_prefix(' ')?;
        (level > 0).then(|| (level, text.trim().to_owned()))
    };
    prose(text).into_iter().filter_map(heading).collect()
}

/// The anchor of a heading, as GitHub makes it.
pub(crate) fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// The targets of the links of a document, with the line of each.
pub(crate) fn links(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for (number, line) in prose(text) {
        // What stands between back-ticks is code.
        let outside: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        for rest in outside.split("](").skip(1) {
            links.push((number, rest.split(')').next().unwrap_or_default().to_owned()));
        }
    }
    links
}

#[test]
fn markdown_is_read() {
    let text = "# A `b` c\n\n1. x\n\n   <!-- not run: a b -->\n   ```sh\n   a\n     b\n   ```\n```text\n# no heading\n```\n[x](y.md#z) `[no](link)`\n";
    let found = blocks(text);
    assert_eq!((found[0].line, &*found[0].language, &*found[0].content), (6, "sh", "a\n  b\n"));
    assert_eq!(found[0].mark.as_deref(), Some("not run: a b"));
    assert_eq!((&*found[1].language, &found[1].mark), ("text", &None));
    assert_eq!(headings(text), [(1, "A `b` c".to_owned())]);
    assert_eq!(anchor("A `b` c: d-e"), "a-b-c-d-e");
    assert_eq!(links(text), [(13, "y.md#z".to_owned())]);
}
