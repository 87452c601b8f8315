//! Readable output, coloured where that helps.

use std::io::{IsTerminal as _, Result, Write, stderr, stdout};

use super::Colour;

/// Width of the column of names.
const NAME_CHARS: usize = 26;

/// Where the demo writes. What it shows goes to standard output, why it stopped to standard error.
pub(super) struct Terminal {
    is_coloured: bool,
    steps: u32,
}

/// Colours by what they mean.
#[derive(Clone, Copy)]
pub(super) enum Tone {
    Plain,
    Title,
    Quiet,
    Good,
    Bad,
    /// Bytes that only KMS and its caller may see.
    Secret,
    /// Bytes under one layer of encryption.
    Once,
    /// Bytes under both.
    Twice,
}

impl Tone {
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "0",
            Self::Title => "1",
            Self::Quiet => "2",
            Self::Good => "32",
            Self::Bad => "31",
            Self::Secret => "33",
            Self::Once => "36",
            Self::Twice => "34",
        }
    }
}

impl Terminal {
    pub(super) fn new(colour: Colour) -> Self {
        let is_wanted =
            || stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let is_coloured = match colour {
            Colour::Auto => is_wanted(),
            Colour::Always => true,
            Colour::Never => false,
        };
        Self { is_coloured, steps: 0 }
    }

    /// `text` in a colour.
    pub(super) fn paint(&self, tone: Tone, text: &str) -> String {
        if self.is_coloured { format!("\x1b[{}m{text}\x1b[0m", tone.code()) } else { text.to_owned() }
    }

    pub(super) fn line(&self, text: &str) -> Result<()> {
        writeln!(stdout(), "{text}")
    }

    /// The next step's headline.
    pub(super) fn step(&mut self, title: &str) -> Result<()> {
        self.steps += 1;
        self.line(&format!("\n{}", self.paint(Tone::Title, &format!("{}. {title}", self.steps))))
    }

    /// A name and what there is to say of it, further lines below.
    pub(super) fn fact(&self, name: &str, value: &str) -> Result<()> {
        let name = self.paint(Tone::Quiet, &format!("{name:<NAME_CHARS$}"));
        let indent = format!("\n   {:NAME_CHARS$} ", "");
        self.line(&format!("   {name} {}", value.replace('\n', &indent)))
    }

    /// Bytes on their way: what they are, how many, how they begin, who sees them.
    pub(super) fn bytes(&self, name: &str, bytes: &[u8], tone: Tone, who: &str) -> Result<()> {
        let start: String = bytes.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let more = if bytes.len() > 16 { "…" } else { " " };
        let start = self.paint(tone, &format!("{start:<32}{more}"));
        self.line(&format!(
            "   {name:<NAME_CHARS$} {:>5} bytes  {start} {}",
            bytes.len(),
            self.paint(Tone::Quiet, who)
        ))
    }

    pub(super) fn proven(&self, text: &str) -> Result<()> {
        self.line(&format!(" {} {text}", self.paint(Tone::Good, "✓")))
    }

    pub(super) fn failed(&self, text: &str) {
        let _ = writeln!(stderr(), "\n{} {text}", self.paint(Tone::Bad, "✗"));
    }
}
