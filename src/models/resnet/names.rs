//! The networks that have names.

use super::spec::{BlockKind, ResNetSpec, Stem};
use super::variant::{Shortcut, Variant};

impl ResNetSpec {
    /// The names of networks that torchvision and timm define.
    pub const NAMES: [&'static str; 12] = [
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
        "wide_resnet50_2",
        "wide_resnet101_2",
        "resnet18d",
        "resnet34d",
        "resnet50d",
        "resnet101d",
        "resnet152d",
    ];

    /// The network of that name, for RGB images of `size` pixels a side; `None` if no network has it.
    pub fn named(name: &str, size: usize) -> Option<ResNetSpec> {
        if !ResNetSpec::NAMES.contains(&name) {
            return None;
        }
        if let Some(depth) = name.strip_prefix("wide_resnet").and_then(|rest| rest.strip_suffix("_2")) {
            let plain = ResNetSpec::torchvision(depth.parse().ok()?, size)?;
            let inner_widths = plain.widths.iter().map(|w| w / 2).collect();
            return Some(ResNetSpec { variant: Variant { inner_widths, ..Variant::default() }, ..plain });
        }
        let depth = name.strip_prefix("resnet")?;
        let Some(depth) = depth.strip_suffix('d') else {
            return ResNetSpec::torchvision(depth.parse().ok()?, size);
        };
        let plain = ResNetSpec::torchvision(depth.parse().ok()?, size)?;
        let (deep_stem, shortcut) = (Some([32, 32]), Shortcut::AveragePool);
        let variant = Variant { deep_stem, shortcut, ..Variant::default() };
        Some(ResNetSpec { stem: Stem { kernel: 3, ..plain.stem }, variant, ..plain })
    }

    /// torchvision's ResNet of 18, 34, 50, 101 or 152 layers, for RGB images of `size` pixels a side; `None`
    /// for another depth.
    pub fn torchvision(depth: usize, size: usize) -> Option<ResNetSpec> {
        let (block, depths) = match depth {
            18 => (BlockKind::Basic, [2, 2, 2, 2]),
            34 => (BlockKind::Basic, [3, 4, 6, 3]),
            50 => (BlockKind::Bottleneck, [3, 4, 6, 3]),
            101 => (BlockKind::Bottleneck, [3, 4, 23, 3]),
            152 => (BlockKind::Bottleneck, [3, 8, 36, 3]),
            _ => return None,
        };
        let w = if block == BlockKind::Basic { [64, 128, 256, 512] } else { [256, 512, 1024, 2048] };
        let stem = Stem { width: 64, kernel: 7, stride: 2, max_pool: true };
        Some(ResNetSpec::new(block, [size, size, 3], stem, w.into(), depths.into()))
    }

    /// Its name, such as `ResNet-50`, or its stem, widths and depths where it has no name.
    pub fn in_words(&self) -> String {
        let is_this = |name: &&&str| {
            let known = ResNetSpec::named(name, self.image[0]);
            known.is_some_and(|known| known.architecture() == self.architecture())
        };
        match ResNetSpec::NAMES.iter().find(is_this) {
            Some(name) => match name.strip_prefix("wide_resnet") {
                Some(rest) => format!("Wide ResNet-{}", rest.replace('_', "-")),
                None => name.replace("resnet", "ResNet-").replace('d', "-D"),
            },
            None => {
                let (k, c) = (self.stem.kernel, self.image[2]);
                let block = if self.block == BlockKind::Basic { "basic" } else { "bottleneck" };
                let (widths, depths, more) = (&self.widths, &self.depths, self.variant.in_words());
                format!(
                    "a ResNet of {block} blocks, widths {widths:?}, depths {depths:?}{more}, a {k}x{k} stem on \
                     {c} channels"
                )
            }
        }
    }

    /// The part of the description that fixes the shapes of the tensors, and the stem.
    pub fn architecture(&self) -> (BlockKind, usize, Stem, &[usize], &[usize], &Variant) {
        (self.block, self.image[2], self.stem, &self.widths, &self.depths, &self.variant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are `sum(p.numel() for p in net.parameters())` in PyTorch, without the head.
    #[test]
    fn named_networks_have_pytorchs_numbers_of_parameters() {
        for (name, words, parameters) in [
            ("resnet18", "ResNet-18", 11_176_512),
            ("resnet50", "ResNet-50", 23_508_032),
            ("wide_resnet50_2", "Wide ResNet-50-2", 66_834_240),
            ("wide_resnet101_2", "Wide ResNet-101-2", 124_837_696),
            ("resnet18d", "ResNet-18-D", 11_195_744),
            ("resnet34d", "ResNet-34-D", 21_303_904),
            ("resnet50d", "ResNet-50-D", 23_527_264),
            ("resnet101d", "ResNet-101-D", 42_519_392),
            ("resnet152d", "ResNet-152-D", 58_163_040),
        ] {
            let net = ResNetSpec::named(name, 224).unwrap();
            net.validate().unwrap();
            assert_eq!((net.in_words().as_str(), net.parameters(1..=4)), (words, parameters));
        }
        for name in
            ["resnet", "resnet19", "wide_resnet18_2", "wide_resnet50", "resnet50_2", "resnet50dd", "d"]
        {
            assert_eq!(ResNetSpec::named(name, 224), None, "{name}");
        }
    }

    #[test]
    fn a_plain_network_does_not_mention_variants() {
        let plain = ResNetSpec::torchvision(50, 224).unwrap();
        let json = serde_json::to_string(&plain).unwrap();
        assert!(!json.contains("variant"), "{json}");
        assert_eq!(serde_json::from_str::<ResNetSpec>(&json).unwrap(), plain);
        let wide = ResNetSpec::named("wide_resnet50_2", 224).unwrap();
        let json = serde_json::to_string(&wide).unwrap();
        assert!(json.contains(r#""variant":{"inner_widths":[128,256,512,1024]}"#), "{json}");
        assert_eq!(serde_json::from_str::<ResNetSpec>(&json).unwrap(), wide);
        let d = ResNetSpec::named("resnet50d", 224).unwrap();
        let json = serde_json::to_string(&d).unwrap();
        assert!(json.contains(r#""variant":{"deep_stem":[32,32],"shortcut":"average_pool"}"#), "{json}");
        assert_eq!(serde_json::from_str::<ResNetSpec>(&json).unwrap(), d);
    }

    #[test]
    fn inner_widths_that_no_network_has_are_refused() {
        let refused = |net: &ResNetSpec, inner: &[usize]| {
            let variant = Variant { inner_widths: inner.to_vec(), ..Variant::default() };
            ResNetSpec { variant, ..net.clone() }.validate().unwrap_err()
        };
        let bottleneck = ResNetSpec::torchvision(50, 224).unwrap();
        assert!(refused(&bottleneck, &[64, 128]).contains("expected 4 sizes between 1 and 65536"));
        assert!(refused(&bottleneck, &[64, 0, 256, 512]).contains("expected 4 sizes"));
        assert!(refused(&bottleneck, &[64, 128, 256, 512]).contains("leave them out"));
        assert!(refused(&ResNetSpec::torchvision(18, 224).unwrap(), &[32; 4]).contains("basic blocks"));
    }
}
