use dfka_engine::error::Error;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Before there is a second thread.
    dfka_engine::device::collective::prepare();
    match dfka_engine::cli::run(std::env::args_os()) {
        Ok(code) => code,
        Err(e) => {
            let is_stop = matches!(e, Error::Stopped { .. });
            // If standard error is closed, the message is lost; the exit code remains.
            let prefix = if is_stop { "" } else { "error: " };
            let _ = writeln!(std::io::stderr(), "{prefix}{}", printable(&e.to_string()));
            ExitCode::from(e.exit_code())
        }
    }
}

/// Escapes control characters and truncates, so that file contents in a message are safe to print.
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
