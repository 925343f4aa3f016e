use dfka_engine::error::Error;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    match dfka_engine::cli::run(std::env::args_os()) {
        Ok(code) => code,
        Err(e) => {
            let is_wanted = matches!(e, Error::Stopped { .. });
            // Where standard error is closed there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "{}{e}", if is_wanted { "" } else { "error: " });
            ExitCode::from(e.exit_code())
        }
    }
}
