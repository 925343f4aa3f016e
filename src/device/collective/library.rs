//! What a library that moves data between ranks can do.

/// Moves bytes between the memories of all processes of a launch. Every rank calls the same functions in the same order.
///
/// Errors are the library's own words.
pub trait Library: Send + Sync {
    /// The file that was opened.
    fn file(&self) -> &str;
    /// Part i of `from` goes to rank i; part j of `to` comes from rank j. All parts are of one size.
    fn all_to_all(&self, from: &[u8], to: &mut [u8]) -> Result<(), String>;
    /// `all` has a part of `own`'s size for each rank.
    fn all_gather(&self, own: &[u8], all: &mut [u8]) -> Result<(), String>;
    /// `data` becomes that of rank `from`.
    fn broadcast(&self, data: &mut [u8], from: usize) -> Result<(), String>;
    /// Ends the exchange; no other call follows.
    fn finalize(&self);
}
