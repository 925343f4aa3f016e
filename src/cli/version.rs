//! What the program is called.

/// The program's name.
pub const NAME: &str = "dfka-engine";

/// The version, with the git revision in brackets where the program was built in its repository.
pub const VERSION: &str = env!("DFKA_VERSION");
