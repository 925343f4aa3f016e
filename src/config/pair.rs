//! A list of exactly two: serde's arrays take the first two of three and say nothing.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, SeqAccess, Visitor};

/// For `deserialize_with`: two values where the key is given.
pub fn optional<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Option<[T; 2]>, D::Error> {
    struct Two<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Two<T> {
        type Value = [T; 2];
        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("a list of length 2")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<[T; 2], A::Error> {
            let mut next =
                |i| items.next_element()?.ok_or_else(|| A::Error::invalid_length(i, &"a list of length 2"));
            let pair = [next(0)?, next(1)?];
            let mut more = 0;
            while items.next_element::<IgnoredAny>()?.is_some() {
                more += 1;
            }
            match more {
                0 => Ok(pair),
                more => Err(A::Error::invalid_length(2 + more, &"a list of length 2")),
            }
        }
    }
    d.deserialize_seq(Two(PhantomData)).map(Some)
}
