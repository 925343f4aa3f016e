//! Devices that do not exist. No machine has a thousand GPUs; the words about the driver depend on the
//! machine.

use super::{Case, nothing};

const fn case(what: &'static str, args: &'static str, words: &'static [&'static str]) -> Case {
    Case { what, spoil: nothing, args, code: 5, words }
}

#[rustfmt::skip] // one line per case
pub const CASES: &[Case] = &[
    case("a card that is not there", "* c.toml --device cuda:1000", &["cuda:1000", "or use --device cpu"]),
    case("a card that is not there for eval", "eval left.npz evaluation.npz --device cuda:1000", &["cuda:1000", "or use --device cpu"]),
    Case { what: "a card that is not there for a teacher", spoil: |l| super::put(l, "t.toml", super::config::TEACH), args: "teach t.toml --device cuda:1000", code: 5, words: &["cuda:1000", "or use --device cpu"] },
];
