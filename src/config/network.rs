//! The key `network`: a ResNet by its name or as a table.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::source::Source;
use super::suggest::suggest;
use crate::error::Result;
use crate::models::resnet::{Architecture, BlockKind, ResNetSpec, Stem, Variant};

/// The ResNet of that name. `path` is that of the key `network`, `image_size` in pixels a side.
pub(super) fn named(source: &Source, path: &str, name: &str, image_size: usize) -> Result<ResNetSpec> {
    ResNetSpec::named(name, image_size).ok_or_else(|| {
        let hint = suggest(name, &ResNetSpec::NAMES);
        source.fail(path, format!("unknown `{path}` \"{name}\"; {hint}"))
    })
}

/// `"resnet101"`, or a table.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum RawNetwork {
    Named(String),
    Table(RawTable),
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTable {
    block: BlockKind,
    widths: Vec<i64>,
    depths: Vec<i64>,
    stem: RawStem,
    #[serde(default, skip_serializing_if = "Variant::is_none")]
    variant: Variant,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawStem {
    width: i64,
    kernel: i64,
    stride: i64,
    max_pool: bool,
}

// Written by hand because a derived untagged enum loses the place of an error.
impl<'de> Deserialize<'de> for RawNetwork {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct NameOrTable;
        impl<'de> Visitor<'de> for NameOrTable {
            type Value = RawNetwork;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a name such as \"resnet101\" or a table")
            }
            fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<RawNetwork, E> {
                Ok(RawNetwork::Named(v.into()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawNetwork, A::Error> {
                RawTable::deserialize(MapAccessDeserializer::new(map)).map(RawNetwork::Table)
            }
        }
        d.deserialize_any(NameOrTable)
    }
}

impl RawNetwork {
    /// The parts of the network that do not depend on its images. `path` is the key's.
    pub fn build(&self, source: &Source, path: &str) -> Result<Architecture> {
        match self {
            RawNetwork::Named(name) => {
                // Any size: none of the parts that are taken depends on it.
                let known = named(source, path, name, 224)?;
                let ResNetSpec { block, stem, widths, depths, variant, .. } = known;
                Ok(Architecture { block, stem, widths, depths, variant })
            }
            RawNetwork::Table(table) => {
                let network = Architecture {
                    block: table.block,
                    stem: table.stem.build(source, path)?,
                    widths: table.by_block(source, path, "widths", &table.widths, 65_536)?,
                    depths: table.by_block(source, path, "depths", &table.depths, 1024)?,
                    variant: table.variant.clone(),
                };
                let wrong = |e| source.fail(&format!("{path}.widths"), format!("`{path}`: {e}"));
                network.validate().map_err(wrong)?;
                Ok(network)
            }
        }
    }
}

impl RawTable {
    /// The values of the key `name`, one for each block, each at most `most`.
    fn by_block(
        &self,
        source: &Source,
        path: &str,
        name: &str,
        values: &[i64],
        most: i64,
    ) -> Result<Vec<usize>> {
        if self.widths.is_empty() || self.depths.len() != self.widths.len() {
            let message = format!(
                "`{path}.depths` has {} entries and `{path}.widths` {}; expected one of each for every block",
                self.depths.len(),
                self.widths.len()
            );
            return Err(source.fail(&format!("{path}.depths"), message));
        }
        let at = |i| format!("{path}.{name}.{i}");
        values.iter().enumerate().map(|(i, &v)| source.count(&at(i), v, 1..=most)).collect()
    }
}

impl RawStem {
    fn build(&self, source: &Source, path: &str) -> Result<Stem> {
        let at = |key: &str| format!("{path}.stem.{key}");
        let kernel = source.count(&at("kernel"), self.kernel, 1..=15)?;
        if kernel % 2 == 0 {
            let message = format!("`{path}.stem.kernel` is {kernel}; expected an odd number");
            return Err(source.fail(&at("kernel"), message));
        }
        Ok(Stem {
            width: source.count(&at("width"), self.width, 1..=65_536)?,
            kernel,
            stride: source.count(&at("stride"), self.stride, 1..=8)?,
            max_pool: self.max_pool,
        })
    }
}
