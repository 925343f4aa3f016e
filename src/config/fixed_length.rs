//! Lists of a fixed length. serde's own arrays would take the first two of three numbers without an error.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

/// For `deserialize_with`: exactly `N` values, if the key is given.
pub fn optional<'de, D, T, const N: usize>(d: D) -> Result<Option<[T; N]>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Exactly<T, const N: usize>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for Exactly<T, N> {
        type Value = [T; N];
        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            write!(f, "a list of length {N}")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<[T; N], A::Error> {
            let mut list = Vec::new();
            while let Some(item) = items.next_element()? {
                list.push(item);
            }
            <[T; N]>::try_from(list).map_err(|list| {
                Error::invalid_length(list.len(), &Exactly::<T, N>(PhantomData) as &dyn serde::de::Expected)
            })
        }
    }
    d.deserialize_seq(Exactly(PhantomData)).map(Some)
}
