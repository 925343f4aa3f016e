//! What the program is called.

/// The version, with the git revision in brackets where the program was built in its repository.
pub const VERSION: &str = env!("DFKA_VERSION");
