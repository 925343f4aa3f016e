//! What differs between the architectures of two networks, in words.

use super::spec::{BlockKind, Normalisation, ResNetSpec};
use super::variant::Shortcut;

/// The properties in which `found` differs from `expected`, as "PROPERTY FOUND (EXPECTED in FILE)". `file`
/// is the name of the file of `expected`. The text is empty where the two are equal.
pub fn difference(found: &ResNetSpec, expected: &ResNetSpec, file: &str) -> String {
    type Describe = fn(&ResNetSpec) -> String;
    let properties: [(&str, Describe); 10] = [
        ("residual units of the kind", |n| kind(n.block).into()),
        ("residual units by block", |n| listed(&n.depths)),
        ("channels by block", |n| listed(&n.widths)),
        ("inner channels of bottlenecks by block", |n| match &n.variant.inner_widths[..] {
            [] => "a quarter of the block's".into(),
            inner => listed(inner),
        }),
        ("a stem of", stem),
        ("before the stem's last convolution", |n| match n.variant.deep_stem {
            Some([first, second]) => format!("two of {first} and {second} channels"),
            None => "none".into(),
        }),
        ("shortcuts by", |n| match n.variant.shortcut {
            Shortcut::AveragePool => "an average pool and a convolution".into(),
            Shortcut::Strided => "a convolution".into(),
        }),
        ("images of", |n| {
            let [h, w, c] = n.image;
            format!("{h} x {w} pixels and {c} {}", if c == 1 { "channel" } else { "channels" })
        }),
        ("a block's stride in the convolution of", |n| n.stride.in_words().into()),
        ("a normalisation by", |n| normalisation(n.normalisation.as_ref())),
    ];
    let differing = properties.iter().filter_map(|(property, describe)| {
        let (found, expected) = (describe(found), describe(expected));
        (found != expected).then(|| format!("{property} {found} ({expected} in {file})"))
    });
    differing.collect::<Vec<_>>().join(", ")
}

fn kind(block: BlockKind) -> &'static str {
    match block {
        BlockKind::Basic => "basic",
        BlockKind::Bottleneck => "bottleneck",
    }
}

fn stem(n: &ResNetSpec) -> String {
    let (s, k) = (&n.stem, n.stem.kernel);
    let pool = if s.max_pool { "a max pool" } else { "no max pool" };
    format!("{} channels, a {k}x{k} filter, stride {} and {pool}", s.width, s.stride)
}

/// The normalisation in words. A network without one takes images in [-1, 1].
fn normalisation(n: Option<&Normalisation>) -> String {
    n.map_or_else(|| Normalisation::identity(1).in_words(), Normalisation::in_words)
}

fn listed<T: ToString>(values: &[T]) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::resnet::StridePlace;

    #[test]
    fn every_property_that_differs_is_named_with_both_values() {
        let left = ResNetSpec::torchvision(18, 224).unwrap();
        assert_eq!(difference(&left, &left, "l.npz"), "");
        let mut right = ResNetSpec { depths: vec![2, 2, 2, 1], ..left.clone() };
        assert_eq!(
            difference(&right, &left, "l.npz"),
            "residual units by block 2, 2, 2, 1 (2, 2, 2, 2 in l.npz)"
        );
        right.block = BlockKind::Bottleneck;
        right.widths[3] = 500;
        right.stem.max_pool = false;
        right.image = [224, 200, 1];
        right.variant.inner_widths = vec![8, 9];
        right.variant.deep_stem = Some([4, 5]);
        right.variant.shortcut = Shortcut::AveragePool;
        right.stride = StridePlace::First;
        right.normalisation = Some(Normalisation::imagenet());
        let text = difference(&right, &left, "l.npz");
        for part in [
            "of the kind bottleneck (basic in l.npz)",
            "inner channels of bottlenecks by block 8, 9 (a quarter of the block's in l.npz)",
            "before the stem's last convolution two of 4 and 5 channels (none in l.npz)",
            "shortcuts by an average pool and a convolution (a convolution in l.npz)",
            "channels by block 64, 128, 256, 500 (64, 128, 256, 512 in l.npz)",
            "stride 2 and no max pool (64 channels, a 7x7 filter, stride 2 and a max pool in l.npz)",
            "images of 224 x 200 pixels and 1 channel (224 x 224 pixels and 3 channels in l.npz)",
            "convolution of 1x1 (3x3 in l.npz)",
            "mean 0.485, 0.456, 0.406 and std 0.229, 0.224, 0.225 (mean 0.5 and std 0.5 in l.npz)",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }
}
