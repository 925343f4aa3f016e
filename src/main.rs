use dfka_engine::error::Error;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    match dfka_engine::cli::run(std::env::args_os()) {
        Ok(code) => code,
        Err(e) => {
            let is_wanted = matches!(e, Error::Stopped { .. });
            // Where standard error is closed there is nobody to tell.
            let prefix = if is_wanted { "" } else { "error: " };
            let _ = writeln!(std::io::stderr(), "{prefix}{}", printable(&e.to_string()));
            ExitCode::from(e.exit_code())
        }
    }
}

/// What a file says may stand in a message: without control characters, which a terminal would obey, and of a length that
/// can be read (a key may be as long as its file).
fn printable(message: &str) -> String {
    const LONGEST: usize = 2000;
    let mut text = String::new();
    for c in message.chars() {
        if c.is_control() && c != '\n' {
            text.extend(c.escape_default());
        } else {
            text.push(c);
        }
        if text.len() > LONGEST {
            return text + " ...";
        }
    }
    text
}
