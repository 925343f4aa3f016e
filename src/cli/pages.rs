//! `completions` and `man`: what shells and `man` read about the program.

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use super::version::NAME;
use crate::error::{Error, Result};

#[derive(Args)]
pub struct CompletionsArgs {
    /// The shell that is to complete this program's arguments
    shell: Shell,
}

#[derive(Args)]
pub struct ManArgs {
    /// Command to describe [default: the program, with a list of its commands]
    command: Option<String>,
}

/// A script for the shell.
pub fn completions(args: &CompletionsArgs, mut program: Command) -> Result<String> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, NAME, &mut script);
    utf8(script)
}

/// A page in roff, of the program or of one of its commands.
///
/// Errors: a command that the program does not have.
pub fn man(args: &ManArgs, mut program: Command) -> Result<String> {
    // Gives every command its whole name, such as `dfka-engine run`.
    program.build();
    let page = match &args.command {
        None => program,
        Some(name) => match program.find_subcommand(name) {
            Some(command) => command.clone().display_name(format!("{NAME}-{name}")),
            None => {
                let known: Vec<&str> = program.get_subcommands().map(|c| c.get_name()).collect();
                let message =
                    format!("man: there is no command `{name}`; expected one of: {}", known.join(", "));
                return Err(Error::Usage(message));
            }
        },
    };
    let mut text = Vec::new();
    Man::new(page).render(&mut text).map_err(|e| Error::Run(format!("man: cannot write the page: {e}")))?;
    utf8(text)
}

fn utf8(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| Error::Run(format!("the page is not UTF-8: {e}")))
}
