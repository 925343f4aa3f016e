use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    match dfka_engine::cli::run(std::env::args_os()) {
        Ok(code) => code,
        Err(e) => {
            // Where standard error is closed there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "error: {e}");
            ExitCode::from(e.exit_code())
        }
    }
}
