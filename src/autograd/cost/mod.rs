//! What a plan costs: bytes, launches and arithmetic counted from the plan itself, and times measured by
//! running it.

pub(super) mod bytes;
pub(super) mod timing;
pub(super) mod traffic;
